"""`helm test`: make a picture through the gateway, with a key that lives no longer than this."""

import base64
import json
import subprocess
import sys
import urllib.error
import urllib.request

KEYS = ("tiny-sd-gateway", "keys")
FILE_TYPES = {b"\xff\xd8\xff": "JPEG", b"\x89PNG": "PNG"}


def main(url: str, seconds: str) -> None:
    """Ask the gateway at ``url``, for at most ``seconds``. Exits with a message where there is no picture."""
    key = _keys("create", "helm test", "--credits", "1000")
    try:
        body = {"prompt": "a small red circle", "response_format": "b64_json"}
        request = urllib.request.Request(
            f"{url}/v1/images/generations",
            json.dumps(body).encode(),
            {"authorization": f"Bearer {key}", "content-type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=float(seconds)) as answer:
                picture = base64.b64decode(json.load(answer)["data"][0]["b64_json"])
        except urllib.error.HTTPError as error:
            sys.exit(f"the gateway answered {error.code}: {error.read().decode(errors='replace')}")
    finally:
        _keys("revoke", key)
    kind = next((name for start, name in FILE_TYPES.items() if picture.startswith(start)), None)
    if not kind:
        sys.exit(f"got {len(picture)} bytes that are no picture")
    sys.stdout.write(f"got a {kind} file of {len(picture)} bytes\n")


def _keys(*arguments: str) -> str:
    return subprocess.run([*KEYS, *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


if __name__ == "__main__":
    main(*sys.argv[1:])
