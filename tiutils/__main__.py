"""`python -m tiutils`, and so `accelerate launch -m tiutils` and `torchrun -m tiutils`."""

import sys

from tiutils.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
