"""Where the repository is; importing this lets a script of this folder import three more things.

They are softprompt, without installing it; the world that the shipped rows are about; and what the benchmarks of speed
have: rows, shapes, and sides that are timed.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
for folder in (ROOT / "benchmarks" / "speed", ROOT / "scripts", ROOT):
    if str(folder) not in sys.path:
        sys.path.insert(1, str(folder))  # behind the script's own folder
