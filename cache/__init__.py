"""The feature cache: what stage one leaves and stage two reads."""

import logging

logging.getLogger(__name__).addHandler(logging.NullHandler())
