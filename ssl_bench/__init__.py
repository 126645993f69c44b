"""ssl-bench: one benchmark for self-supervised visual pretraining.

Importing this package loads the standard library only.
"""

from pathlib import Path

from ssl_bench import torchvision_hook

__version__ = "0.1.0"

# In a checkout, methods/, evaluations/ and configs/ sit beside this package; a wheel nests them inside it.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "setup.cfg").is_file() and (_checkout / "methods" / "__init__.py").is_file():
    __path__.append(str(_checkout))

torchvision_hook.install()
