"""`python -m llmtune`."""

import sys

from llmtune.cli.main import main

sys.exit(main())
