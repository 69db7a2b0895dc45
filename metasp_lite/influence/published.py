"""Numbers printed in the papers, to stand beside ours.  None of them was obtained here."""

from metasp_lite.influence.agreement import SignConfusion

#: MetaSP (Sun et al., Exploring Example Influence in Continual Learning, NeurIPS 2022), Table 6 (appendix): signs of
#: 1000 approximate influences against the Hessian influence function.  Its setting (width, damping, number of
#: pseudo-updates, optimiser) is not printed.
TABLE_6 = {
    "Larsen": SignConfusion(552, 304, 26, 118),
    "Luketina": SignConfusion(533, 313, 17, 137),
    "Neumann series": SignConfusion(642, 282, 48, 28),
    "Ours (MetaSP)": SignConfusion(650, 315, 15, 20),
}
