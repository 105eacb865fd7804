"""Whether the process in this container lives: asks its /health. For HEALTHCHECK, as the image has no curl."""

import sys
from http.client import HTTPConnection

PORT = 8008  # in every container, whichever service it is


def main() -> int:
    """0 if it answers."""
    connection = HTTPConnection("127.0.0.1", PORT, timeout=4)
    try:
        connection.request("GET", "/health")
        return 0 if connection.getresponse().status == 200 else 1
    except OSError:
        return 1
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
