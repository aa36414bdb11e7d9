"""An S3 server for tests: moto on a port of loopback, one request after the other, until stdin ends. With threads, as
moto_server runs it, it lets several be the first to put an object if absent."""
import os
import sys
import threading
import time

from moto.s3.exceptions import NoSuchUpload
from moto.s3.models import FakeMultipart, S3Backend
from moto.s3.responses import S3Response
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple


def end_with_stdin():
    sys.stdin.read()
    os._exit(0)


def known(method):
    """S3 says so when there is no such multipart upload any more; moto fails."""

    def call(backend, bucket_name, multipart_id, *rest, **named):
        if multipart_id not in backend.get_bucket(bucket_name).multiparts:
            raise NoSuchUpload(upload_id=multipart_id)
        return method(backend, bucket_name, multipart_id, *rest, **named)

    return call


def dated(method):
    """moto says of every multipart upload that it was begun in 2010."""

    def call(response):
        status, headers, body = method(response)
        for upload in response.backend.list_multipart_uploads(response.bucket_name).values():
            if upload.key_name.startswith(response.querystring.get("prefix", [""])[0]):
                body = body.replace("2010-11-10T20:48:33", upload.begun, 1)
        return status, headers, body

    return call


def begin(upload, *rest, make=FakeMultipart.__init__, **named):
    make(upload, *rest, **named)
    upload.begun = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())


FakeMultipart.__init__ = begin
S3Response.list_multipart_uploads = dated(S3Response.list_multipart_uploads)
S3Backend.upload_part = known(S3Backend.upload_part)
S3Backend.complete_multipart_upload = known(S3Backend.complete_multipart_upload)
threading.Thread(target=end_with_stdin, daemon=True).start()
run_simple("127.0.0.1", int(sys.argv[1]), DomainDispatcherApplication(create_backend_app), threaded=False)
