"""`python -m ultramem`, and with it `torchrun -m ultramem`."""

import sys

from ultramem.cli import main

sys.exit(main())
