"""Print the dependencies of the packages whose pyproject.toml files are named, one a line, as pip takes them.

So an image can install them before it gets the packages themselves, in a layer that code does not change.
"""

import sys
import tomllib
from pathlib import Path

for name in sys.argv[1:]:
    print(*tomllib.loads(Path(name).read_text())["project"]["dependencies"], sep="\n")  # noqa: T201
