"""Numbers that the two papers print and the notebooks quote, so that a misquoted one is noticed."""

from metasp_lite.influence import published

#: Sun et al., Exploring Example Influence in Continual Learning, NeurIPS 2022, with its appendices
METASP = {
    "Table 2, class-incremental, 300: A_1, A_inf, A_m, BWT of ER": [96.73, 34.19, 53.72, -78.18],
    "of MetaSP": [96.87, 42.42, 63.52, -68.07],
    "of MetaSP with RehSel": [96.85, 43.76, 63.69, -66.37],
    "Table 2, class-incremental, 500: the same of ER": [96.74, 40.45, 57.69, -70.36],
    "of MetaSP with and without RehSel": [96.82, 49.16, 67.88, -59.58, 96.81, 50.10, 68.28, -58.39],
    "Table 5, class-incremental: RehSel without clusters, without influence": [96.60, 38.50, 62.38, 47.55, 67.49],
    "Table 6": [count for row in published.TABLE_6.values() for count in (row.agreement, *vars(row).values())],
    "Table 6: positive and negative ones of the exact influences": [670, 330],
    "appendix J: training and test images": [1000, 500],
    "protocol: epochs of a task, rehearsing ones, batch, |M|": [50, 45, 5, 32, 300, 500, 1000],
}
#: Chen et al., Multi-Stage Influence Function, NeurIPS 2020, with its appendices
TWO_STAGES = {
    "section 4.1: r of the scores and of identities for Hessians": [0.47, 0.17],
    "MNIST: finetuning examples, steps, batch, examples for G'', damping": [5000, 100, 512, 1000, 0.01, 1e-8],
    "CIFAR-10: steps of both stages, batch, damping": [6000, 3000, 128, 1e-8, 1e-6],
    "figure B: mean score of the same and of another task": [0.055, 0.025],
    "figure C: mean score, that of three times the examples and steps, their ratio": [0.22, 0.15, 0.68],
}
NUMBERS = {abs(float(number)) for paper in (METASP, TWO_STAGES) for row in paper.values() for number in row}
NUMBERS |= {-number for number in NUMBERS}
