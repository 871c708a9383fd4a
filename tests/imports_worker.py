"""Import a module and names in it, and print what loads: `imports_worker.py MODULE NAME ...`.

The output is the names of all top-level modules of the process, one per line.
"""

import importlib
import sys

if __name__ == "__main__":
    module = importlib.import_module(sys.argv[1])
    for attribute in sys.argv[2:]:
        getattr(module, attribute)
    for package in sorted({loaded.partition(".")[0] for loaded in sys.modules}):
        sys.stdout.write(f"{package}\n")
