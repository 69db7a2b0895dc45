"""The symbols of the course: each has one meaning, from the notebook that defines it to the last."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class _Symbol:
    """A symbol as the notebooks' tables write it, in LaTeX, and what it stands for."""

    symbol: str
    word: str
    meaning: str
    home: str  # the number of the notebook that defines it
    shape: str
    code: str = ""  # its name in that notebook's code; "" where the code has none
    elsewhere: Sequence[str] = ()  # the other notebooks that may use it
    form: bool = False  # whether it is a form of a letter that another row defines, as I_S is one of I


_LATER = ("02", "03", "04", "05", "06", "07", "08", "09")  # all but the first

SYMBOLS = (
    _Symbol(
        r"x_i, y_i", "example", "a training image and its label; there are n", "01", "(n, ·) and (n,)", "X", _LATER
    ),
    _Symbol(r"X", "example", "the x_i as rows", "01", "(n, p)", "X", ("08",)),
    _Symbol(r"n", "number of examples", "that a mean is taken over", "01", "number", "n", _LATER),
    _Symbol(r"B", "batch", "the examples that are scored together", "01", "n examples", "", ("02", "05", "06")),
    _Symbol(r"\theta", "parameters", "all p numbers of the model", "01", "(p,)", "theta", _LATER),
    _Symbol(r"p", "parameters", "how many there are", "01", "number", "", ("02", "03")),
    _Symbol(r"\ell(x,\theta)", "loss", "of one example, in nats", "01", "number", "losses", _LATER),
    _Symbol(
        r"J(\theta)", "objective", "mean loss and weight decay", "01", "number", "objective", ("02", "03", "08", "09")
    ),
    _Symbol(r"H", "Hessian", "of J at the optimum", "01", "(p, p)", "H", ("02", "03", "04", "08", "09")),
    _Symbol(
        r"\hat\theta",
        "optimum",
        "where ∇J is zero and H positive definite",
        "01",
        "(p,)",
        "theta_hat",
        ("02", "03"),
        form=True,
    ),
    _Symbol(r"V", "validation loss", "the examples that it is the mean loss of", "01", "examples", "V", _LATER),
    _Symbol(
        r"\ell(V,\theta)", "validation loss", "mean loss over a set V", "01", "number", "validation", _LATER, form=True
    ),
    _Symbol(r"\lambda", "weight decay", "of the objective, λ/2 ‖θ‖²", "01", "number", "l2", ("02", "03", "08", "09")),
    _Symbol(r"\delta", "damping", "added to each eigenvalue of H", "01", "number", "delta", ("02", "03", "08", "09")),
    _Symbol(r"s", "eigenvalue", "of H: the curvature along its eigenvector", "01", "number", "eigenvalues", _LATER),
    _Symbol(
        r"s_{\max}",
        "eigenvalue",
        "the largest; a step size below 2/s_max is stable",
        "02",
        "number",
        "",
        ("03", "04"),
        form=True,
    ),
    _Symbol(
        r"s_{\min}",
        "eigenvalue",
        "the smallest; it bounds how far an optimum moves",
        "02",
        "number",
        "",
        ("03",),
        form=True,
    ),
    _Symbol(r"\epsilon", "extra weight", "of one example, added to its 1/n", "01", "number", "epsilon", _LATER),
    _Symbol(r"I(V,x)", "influence", "derivative of ℓ(V) by ε; negative helps", "01", "number", "I", _LATER),
    _Symbol(r"q", "solution", "of a system with H: of Hq = ∇ℓ(V) first", "01", "(p,)", "q", ("02", "03", "08", "09")),
    _Symbol(r"r", "correlation", "Pearson's, of predicted with true changes", "01", "number", "r", _LATER),
    _Symbol(r"\sigma", "logistic function", "1/(1 + exp(−x))", "01", "number"),
    _Symbol(r"v", "vector", "any, as one that H⁻¹ is applied to", "02", "(p,)", "v", ("01", "03", "04")),
    _Symbol(r"Hv", "Hessian-vector product", "the unit of cost", "02", "(p,)", "curvature", ("03", "08"), form=True),
    _Symbol(r"C", "Cholesky factor", "of H: H = CCᵀ", "02", "(p, p)", "C", ("03", "08")),
    _Symbol(
        r"\theta_k\to\theta_{k+1}",
        "pseudo-update",
        "a step to be differentiated, then dropped",
        "02",
        "(p,)",
        form=True,
    ),
    _Symbol(
        r"K", "number of steps", "that are differentiated, or Neumann terms", "02", "number", "K", ("03", "05", "09")
    ),
    _Symbol(r"u_k", "recursion", "derivative of the last step's loss by θ_k", "02", "(p,)", "", ("09",)),
    _Symbol(r"J_B", "batch objective", "that of the examples of a batch alone", "02", "number", "", ("03",), form=True),
    _Symbol(r"E", "extra weights", "of a batch, in plain weights: E_i = nε_i", "02", "(n,)", "E", ("03", "05", "06")),
    _Symbol(
        r"a", "step size", "of training and of pseudo-updates", "02", "number", "a", ("03", "04", "05", "06", "09")
    ),
    _Symbol(r"N_j", "half", "the j-th random half of the training examples", "03", "n/2 examples", "halves"),
    _Symbol(r"g", "gradient", "of a loss by θ", "04", "(p,)", "g1", ("05",)),
    _Symbol(r"g^\top d", "slope", "of a loss with gradient g along d", "04", "number", "", ("05",), form=True),
    _Symbol(r"d", "descent direction", "the step is a times it", "04", "(p,)", "d", ("05",)),
    _Symbol(r"\mu_1,\mu_2", "multipliers", "prices of the constraints (Lagrange)", "04", "numbers", "mu"),
    _Symbol(
        r"\gamma", "share", "of the first of two vectors in a mixture", "04", "number", "gamma", ("05", "06", "07")
    ),
    _Symbol(r"\tau", "bound of the slopes", "the larger of two, at the optimum", "04", "number", "tau"),
    _Symbol(r"c_i", "minimum", "of the i-th of two quadratic losses", "04", "(2,)", "c"),
    _Symbol(r"\theta'", "moved parameters", "where one step takes θ", "05", "(p,)", "moved", ("02", "06"), form=True),
    _Symbol(r"t", "tasks", "number of a task; t − 1 came before it", "05", "number", "", ("06", "07")),
    _Symbol(r"D_t", "tasks", "the data of task t", "05", "examples", "", ("06", "07")),
    _Symbol(r"\theta_t", "tasks", "the network after task t", "05", "(p,)", "", ("06", "07"), form=True),
    _Symbol(r"S_t^k", "stability", "what learning task t does to task k before it", "05", "number", "", ("06", "07")),
    _Symbol(r"P_t", "plasticity", "what learning task t gains on it", "05", "number", "", ("06", "07")),
    _Symbol(r"w", "weights of a step", "1/n + ε_i for example i; 1/n is plain", "05", "(n,)", "weights", ("06", "07")),
    _Symbol(
        r"n\,w_i", "relative weight", "of example i in a step; 1 is plain", "06", "number", "w", ("07",), form=True
    ),
    _Symbol(r"L", "batch losses", "the losses of a batch one by one", "05", "(n,)", "losses", ("01", "02")),
    _Symbol(r"\ell(B)", "batch losses", "their mean", "05", "number", "", ("06",), form=True),
    _Symbol(r"M", "memory", "the stored examples of old tasks", "05", "examples", "", ("06", "07")),
    _Symbol(
        r"V_{old}", "validation sets", "examples from the memory", "05", "examples", "old", ("06", "07"), form=True
    ),
    _Symbol(
        r"V_{new}", "validation sets", "examples of the new task", "05", "examples", "new", ("06", "07"), form=True
    ),
    _Symbol(r"I_S", "S- and P-influence", "derivative of ℓ(V_old) by E", "05", "(n,)", "I_S", ("06", "07"), form=True),
    _Symbol(r"I_P", "S- and P-influence", "derivative of ℓ(V_new) by E", "05", "(n,)", "I_P", ("06", "07"), form=True),
    _Symbol(
        r"I^*", "fused influence", "the shortest mixture of I_S and I_P", "05", "(n,)", "", ("06", "07"), form=True
    ),
    _Symbol(r"\kappa", "length of a correction", "the multiple of −I* that is added to the weights", "05", "number"),
    _Symbol(r"\beta", "momentum", "the share of the last step's velocity that is kept", "05", "number", "", ("06",)),
    _Symbol(r"b", "momentum", "the velocity that a step leaves behind", "05", "(p,)"),
    _Symbol(r"A_{tk}", "accuracy matrix", "test accuracy on task k after task t", "06", "(T, T)", "matrix", ("07",)),
    _Symbol(r"T", "accuracy matrix", "number of tasks", "06", "number", "", ("07",)),
    _Symbol(r"m", "pretraining", "number of its examples", "08", "number", "m", ("09",)),
    _Symbol(r"z", "pretraining", "one of its examples", "08", "image and label", "z", ("09",)),
    _Symbol(r"W", "embedding", "the layers that both stages share", "08", "(n_W,)", "W", ("09",)),
    _Symbol(r"U", "heads", "the last layer of the pretrained network", "08", "(n_U,)", "", ("09",)),
    _Symbol(r"\Theta", "heads", "the last layer of the finetuned network", "08", "(n_Θ,)", "Theta", ("09",)),
    _Symbol(
        r"W^*,U^*,\Theta^*", "optimum", "where the training of a stage ended", "08", "as above", "", ("09",), form=True
    ),
    _Symbol(r"\ell(z)", "pretraining", "loss of one of m examples", "08", "number", "example_loss", ("09",), form=True),
    _Symbol(
        r"J(W,U)", "pretraining", "its objective: mean loss and weight decay", "08", "number", "J", ("09",), form=True
    ),
    _Symbol(r"f", "finetuning", "loss of one example of the second task", "08", "number", "f", ("09",)),
    _Symbol(r"F(W,\Theta)", "finetuning", "mean of f, and weight decay", "08", "number", "F", ("09",)),
    _Symbol(
        r"f(x_\text{test})",
        "target",
        "loss of a test example of the second task",
        "08",
        "number",
        "target",
        ("09",),
        form=True,
    ),
    _Symbol(r"\xi", "sensitivity", "derivative of the target by the embedding", "08", "(n_W,)", "sensitivity", ("09",)),
    _Symbol(r"h", "solution", "of a system with the second stage's Hessian", "08", "(n_Θ,)", "h", ("09",)),
    _Symbol(r"f_W", "partial derivatives", "by the embedding", "08", "(n_W,)", "f_W", ("09",), form=True),
    _Symbol(r"f_\Theta", "partial derivatives", "by the head", "08", "(n_Θ,)", "f_Theta", ("09",), form=True),
    _Symbol(r"f'", "full derivatives", "by all of (W, Θ)", "08", "(n_W + n_Θ,)", "f_prime", ("09",), form=True),
    _Symbol(r"F''", "full derivatives", "by all of (W, Θ), twice", "08", "square", "", ("09",), form=True),
    _Symbol(
        r"I(z)", "influence", "of a pretraining example z on the target", "08", "number", "by_hand", ("09",), form=True
    ),
    _Symbol(r"\alpha", "joint", "weight of the first stage's objective", "09", "number"),
    _Symbol(r"\rho", "proximal", "stiffness of the spring that holds the embedding", "09", "number", "rho"),
    _Symbol(
        r"\theta_0,\theta_1,\dots,\theta_K",
        "finetuning run",
        "after each of K steps",
        "09",
        "like f'",
        "path",
        form=True,
    ),
)


def rows() -> list[dict[str, str]]:
    """Return the symbols as rows of a table, in reading order."""
    return [
        {
            "symbol": f"${one.symbol}$",
            "name": one.word,
            "meaning": one.meaning,
            "shape": one.shape,
            "in code": one.code,
            "defined in": one.home,
        }
        for one in SYMBOLS
    ]
