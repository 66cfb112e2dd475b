"""proxy.py ADDRESS PORT [USER:PASSWORD]: an HTTP proxy that knows CONNECT (RFC 9110,
section 9.3.6) and Basic authorization, and says on stdout what it was asked."""

import asyncio
import base64
import sys


async def pump(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


async def serve(reader, writer):
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
        return writer.close()
    method, target = head[0].split()[:2]
    fields = dict((name.lower(), value.strip()) for name, _, value in
                  (line.partition(":") for line in head[1:] if line))
    wanted = sys.argv[3] if len(sys.argv) > 3 else None
    right = wanted is None or fields.get("proxy-authorization") == \
        "Basic " + base64.b64encode(wanted.encode()).decode()
    print(method, target, "right" if right else "refused", flush=True)
    if not right:
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\n"
                     b"Proxy-Authenticate: Basic realm=\"lab\"\r\nContent-Length: 0\r\n\r\n")
        return writer.close()
    if method != "CONNECT":
        writer.write(b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n")
        return writer.close()
    host, _, port = target.rpartition(":")
    try:
        far_reader, far_writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except OSError:
        writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
        return writer.close()
    writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
    await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))


async def main():
    server = await asyncio.start_server(serve, sys.argv[1], int(sys.argv[2]))
    await server.serve_forever()


asyncio.run(main())
