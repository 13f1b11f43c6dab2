"""`python -m bertbin_tf.cli`, where the command itself is not on the path."""

import sys

from bertbin_tf.cli import main

sys.exit(main())
