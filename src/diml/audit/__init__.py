"""Right for the wrong reason: how much of the scores comes from objects, and how much from their backgrounds.

Read in this order: `foregrounds`, `audit`, `page`.
"""

from diml.audit.audit import Audit, audit_dataset
from diml.audit.foregrounds import Foregrounds

__all__ = ["Audit", "Foregrounds", "audit_dataset"]
