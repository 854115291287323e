"""Published figures to stand beside ours: the thesis's Tables 9.3, 9.4, H.1 (MMHal-Bench) and H.2 (POPE).

Models: LLaVA 7B and 13B, their SFT+ and RLHF (here always with facts); Tables H.1 and H.2 have others too.
"""

from __future__ import annotations

#: the models of the thesis, in the order of its tables
FAMILY = tuple(f"{name} {size}" for size in ("7B", "13B") for name in ("LLaVA", "LLaVA-SFT+", "LLaVA-RLHF"))

#: Table H.1: model -> score, hallucination rate, score of each type in the order of ``evals.mmhal.TYPES``
MMHAL: dict[str, tuple[float, float, tuple[float, ...]]] = {
    "InstructBLIP 13B": (2.14, 0.58, (2.75, 1.75, 1.25, 2.08, 2.5, 4.08, 1.5, 1.17)),
    "LLaVA 7B": (1.55, 0.76, (1.33, 0.0, 1.83, 1.17, 2.0, 2.58, 1.67, 1.83)),
    "LLaVA-SFT+ 7B": (1.76, 0.67, (2.75, 2.08, 1.42, 1.83, 2.17, 2.17, 1.17, 0.5)),
    "LLaVA-RLHF 7B": (2.05, 0.68, (2.92, 1.83, 2.42, 1.92, 2.25, 2.25, 1.75, 1.08)),
    "LLaVA 13B": (1.11, 0.84, (0.67, 0.0, 1.75, 1.58, 1.5, 1.25, 1.5, 0.67)),
    "LLaVA-SFT+ 13B": (2.43, 0.55, (3.08, 1.75, 2.0, 3.25, 2.25, 3.83, 1.5, 1.75)),
    "LLaVA-RLHF 13B": (2.53, 0.57, (3.33, 2.67, 1.75, 2.25, 2.33, 3.25, 2.25, 2.42)),
}

#: Table H.2: model -> split -> accuracy, F1, share of "yes", in percent; of all splits F1 and "yes"
POPE: dict[str, dict[str, tuple[float | None, float, float]]] = {
    name: dict(zip(("random", "popular", "adversarial", "overall"), found, strict=True))
    for name, found in {
        "InstructBLIP 7B": ((88.6, 89.3, 56.6), (79.7, 80.2, 52.5), (65.2, 70.4, 67.8), (None, 80.0, 59.0)),
        "LLaVA 7B": ((76.3, 80.7, 70.9), (68.4, 75.3, 77.9), (62.7, 72.0, 83.2), (None, 76.0, 77.3)),
        "LLaVA-SFT+ 7B": ((86.1, 85.5, 44.5), (82.9, 82.4, 47.2), (80.2, 80.1, 49.6), (None, 82.7, 47.1)),
        "LLaVA-RLHF 7B": ((84.8, 83.3, 39.6), (83.3, 81.8, 41.8), (80.7, 79.5, 44.0), (None, 81.5, 41.8)),
        "LLaVA 13B": ((73.7, 78.8, 72.3), (73.6, 78.2, 71.0), (67.2, 74.4, 77.8), (None, 77.1, 73.7)),
        "LLaVA-SFT+ 13B": ((86.0, 84.8, 40.5), (84.0, 82.6, 41.6), (82.3, 81.1, 43.5), (None, 82.8, 41.9)),
        "LLaVA-RLHF 13B": ((85.2, 83.5, 38.4), (83.9, 81.8, 38.0), (82.3, 80.5, 40.5), (None, 81.9, 39.0)),
    }.items()
}

#: Table 9.4: CircularEval on MMBench's dev set, and Table 9.3: LLaVA-Bench; percent
MMBENCH = {"LLaVA 7B": 38.7, "LLaVA-SFT+ 7B": 52.1, "LLaVA-RLHF 7B": 51.4,
           "LLaVA 13B": 47.5, "LLaVA-SFT+ 13B": 57.5, "LLaVA-RLHF 13B": 60.1}  # fmt: skip
LLAVA_BENCH = {"LLaVA 7B": 81.0, "LLaVA-SFT+ 7B": 86.3, "LLaVA-RLHF 7B": 94.1,
               "LLaVA 13B": 84.9, "LLaVA-SFT+ 13B": 85.2, "LLaVA-RLHF 13B": 95.6}  # fmt: skip

#: sha256 of POPE's official COCO files in circulation -> what they are
POPE_FILES = {
    "ac25245170b975a5bdf9080b23fd431dfe6be458bc038259c1f4f09a6bef7994": "official random, 3,000 questions",
    "72c1a8ad45d0c13514f5f22598261df41d3b533854d29682e924db50ed8aa753": "official popular, 3,000 questions",
    "420b3407db1fa9f1187a805dca41cb7b97fd91504e6c2179706188c107fb8ef8": (
        "official adversarial, 3,000 questions"
    ),
}
