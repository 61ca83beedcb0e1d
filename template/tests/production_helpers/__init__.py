"""Helpers of the production tests. Replaced as a whole by every update of the template: do not edit."""
