"""The methods of the course, each readable in its ``step``."""

from metasp_lite.continual.methods.base import Method, MethodSettings
from metasp_lite.continual.methods.gdumb import GDumb
from metasp_lite.continual.methods.gem import AGEM, GEM
from metasp_lite.continual.methods.gmed import GMED
from metasp_lite.continual.methods.hal import HAL
from metasp_lite.continual.methods.metasp import MetaSP
from metasp_lite.continual.methods.mir_gss import GSS, MIR
from metasp_lite.continual.methods.replay import ER, ERLate, FineTune, Joint
from metasp_lite.continual.methods.selection import MetaSPRehSel

__all__ = ["METHODS", "Method"]

METHODS: dict[str, type[Method[MethodSettings]]] = {
    "fine-tune": FineTune,
    "joint": Joint,
    "er": ER,
    "er-late": ERLate,
    "metasp": MetaSP,
    "metasp-rehsel": MetaSPRehSel,
    "gem": GEM,
    "a-gem": AGEM,
    "mir": MIR,
    "gss": GSS,
    "gmed": GMED,
    "hal": HAL,
    "gdumb": GDumb,
}
