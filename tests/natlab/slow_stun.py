"""slow_stun.py ADDRESS PORT MILLISECONDS: a STUN server (RFC 8489) that answers late: a
relay that is far away."""

import socket
import struct
import sys
import threading

COOKIE = 0x2112A442


def main():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind((sys.argv[1], int(sys.argv[2])))
    delay = int(sys.argv[3]) / 1000
    while True:
        data, (host, port) = s.recvfrom(2000)
        if len(data) < 20 or struct.unpack_from("!HHI", data)[::2] != (1, COOKIE):
            continue
        address = struct.unpack("!I", socket.inet_aton(host))[0] ^ COOKIE
        answer = struct.pack("!HHI12sHHBBHI", 0x0101, 12, COOKIE, data[8:20], 0x0020, 8, 0, 1,
                             port ^ COOKIE >> 16, address)
        threading.Timer(delay, s.sendto, (answer, (host, port))).start()


main()
