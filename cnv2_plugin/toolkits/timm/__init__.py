"""timm models: importing this module registers every variant with ``timm.create_model``."""

from . import condensenet as condensenet
from . import shufflenet as shufflenet
from .hub import save_for_hub as save_for_hub
