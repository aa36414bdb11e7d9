-- PUT of distinct manifests, each under a tag of its own; MANIFEST and SERIES come from the environment.
local threads = 0
function setup(thread)
  thread:set("id", threads)
  threads = threads + 1
end
local count = 0
local manifest = os.getenv("MANIFEST")
local series = os.getenv("SERIES")
local headers = { ["Content-Type"] = "application/vnd.oci.image.manifest.v1+json" }
function request()
  count = count + 1
  local name = series .. "-" .. id .. "-" .. count
  return wrk.format("PUT", "/v2/bench/put/manifests/" .. name, headers, (manifest:gsub("NAME", name)))
end
function response(status, _, body)
  if status ~= 201 then
    io.stderr:write("PUT answered ", status, ": ", body, "\n")
    os.exit(1)
  end
end
