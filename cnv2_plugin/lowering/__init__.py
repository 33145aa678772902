"""An earlier name of what is in :mod:`cnv2_plugin.deploy`."""

from ..deploy import lower as lower
from ..deploy import lowered_forms as lowered_forms
