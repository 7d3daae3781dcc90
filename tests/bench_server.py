"""A web server with byte ranges that counts, for tests/bench. Usage: bench_server.py DIRECTORY PORT_FILE

/count       requests and bytes of all answers so far
/set?K=V&..  delay=SECONDS before each answer, rate=BYTES a second for each connection, drop=BYTES after which the
             connection is closed, again and again; 0 is none
"""

import http.server
import os
import re
import sys
import threading
import time
import urllib.parse

CHUNK = 1 << 16
# A slow link does not bring 64 KiB at once and then nothing for a while.
SLOW_CHUNK = 1 << 12
lock = threading.Lock()
count = [0, 0]
vices = {"delay": 0.0, "rate": 0.0, "drop": 0.0}
until_drop = [0]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Else each answer waits for the client's delayed acknowledgement.
    disable_nagle_algorithm = True

    def say(self, text):
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        if url.path == "/count":
            return self.say("%d %d" % tuple(count))
        if url.path == "/set":
            vices.update((k, float(v[0])) for k, v in urllib.parse.parse_qs(url.query).items())
            until_drop[0] = int(vices["drop"])
            return self.say("")
        path = os.path.join(sys.argv[1], os.path.normpath(url.path.lstrip("/")))
        if not os.path.isfile(path):
            return self.send_error(404)
        time.sleep(vices["delay"])
        size = os.path.getsize(path)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first, last = (int(asked[1]), min(int(asked[2] or size - 1), size - 1)) if asked else (0, size - 1)
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("ETag", '"bench"')
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        with lock:
            count[0] += 1
        with open(path, "rb") as file:
            self.body(file, first, last + 1)

    def body(self, file, at, end):
        due = time.monotonic()
        while at < end:
            chunk = SLOW_CHUNK if vices["rate"] else CHUNK
            n = os.sendfile(self.connection.fileno(), file.fileno(), at, min(chunk, end - at))
            at += n
            with lock:
                count[1] += n
                until_drop[0] -= n
                drop = vices["drop"] and until_drop[0] <= 0
                if drop:
                    until_drop[0] = int(vices["drop"])
            if drop:
                self.close_connection = True
                return
            if vices["rate"]:
                due += n / vices["rate"]
                time.sleep(max(0, due - time.monotonic()))

    def log_message(self, *_):
        pass

    def handle(self):
        try:
            super().handle()
        except (BrokenPipeError, ConnectionResetError):
            pass


httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
with open(sys.argv[2] + ".new", "w") as file:
    file.write(str(httpd.server_port))
os.rename(sys.argv[2] + ".new", sys.argv[2])
httpd.serve_forever()
