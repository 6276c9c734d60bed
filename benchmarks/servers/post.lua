-- POST the photos whose paths are the arguments, one after the other, and print the result.
local bodies, i = {}, 0

function init(paths)
  for n, path in ipairs(paths) do
    local file = assert(io.open(path, "rb"))
    bodies[n] = '--photo\r\nContent-Disposition: form-data; name="request"; filename="photo.jpg"\r\n'
      .. "Content-Type: image/jpeg\r\n\r\n" .. file:read("*a") .. "\r\n--photo--\r\n"
    file:close()
  end
end

function request()
  i = i % #bodies + 1
  local headers = {["Content-Type"] = "multipart/form-data; boundary=photo"}
  return wrk.format("POST", nil, headers, bodies[i])
end

function done(summary, latency)
  local e = summary.errors
  io.write(string.format(
    '{"requests": %d, "seconds": %.4f, "p50_ms": %.2f, "p99_ms": %.2f, "errors": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1000,
    latency:percentile(99) / 1000, e.connect + e.read + e.write + e.status + e.timeout))
end
