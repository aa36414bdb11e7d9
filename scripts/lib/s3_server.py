"""An S3 server for tests: moto on a port of loopback, one request after the other. With threads, as moto_server runs it,
it lets several be the first to put an object if absent."""
import sys

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

run_simple("127.0.0.1", int(sys.argv[1]), DomainDispatcherApplication(create_backend_app), threaded=False)
