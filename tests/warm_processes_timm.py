"""For `warm_processes`: timm imported as diml imports it."""

from diml.lean_imports import import_timm

import_timm()
