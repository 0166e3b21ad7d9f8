"""The feature cache that stage one writes and stage two reads."""

import logging

logging.getLogger(__name__).addHandler(logging.NullHandler())
