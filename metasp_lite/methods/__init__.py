"""The methods of the course, each readable in its ``step``."""

from metasp_lite.methods.anchors import HAL
from metasp_lite.methods.base import Method
from metasp_lite.methods.editing import GMED
from metasp_lite.methods.gdumb import GDumb
from metasp_lite.methods.influence import MetaSP, MetaSPRehSel
from metasp_lite.methods.projection import AGEM, GEM
from metasp_lite.methods.replay import ER, ERLate, FineTune, Joint
from metasp_lite.methods.selection import GSS, MIR

METHODS: dict[str, type[Method]] = {
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
