"""Numbers that the two papers print and the notebooks quote, so that a misquoted one is noticed."""

from metasp_lite.influence import published

#: Sun et al., Exploring Example Influence in Continual Learning, NeurIPS 2022
METASP = {
    "Table 6": [count for row in published.TABLE_6.values() for count in (row.agreement, *vars(row).values())],
    "Table 6, its baseline": [670, 330],
    "appendix J": [1000, 500],
    "Table 5, A_1 of MetaSP and ER": [96.87, 96.73],
    "protocol: epochs, batch, memory, classes": [50, 45, 5, 32, 300, 500, 1000, 5000, 600],
    "the authors' code keeps gamma off 0 and 1": [0.001, 0.999],
}
#: Chen et al., Multi-Stage Influence Function, NeurIPS 2020
TWO_STAGES = {
    "section 4.1: r of the scores and of identities": [0.47, 0.17],
    "MNIST: finetuning examples, steps, batch, damping": [5000, 100, 512, 0.01, 1e-8, 1000],
    "CIFAR-10: steps of both stages, batch, damping": [6000, 3000, 128, 1e-8, 1e-6],
    "section 4.3: mean score of the same and of another task": [0.055, 0.025],
    "section 4.4: mean score, then of three times the data and steps, their ratio": [0.22, 0.15, 0.68],
}
NUMBERS = {float(number) for paper in (METASP, TWO_STAGES) for row in paper.values() for number in row}
