"""Folds with their closed-form heads, and the W and b of one."""

import torch

from kernels.heads.plain import Kind, named
from pipeline.federation.closed_form import with_closed_form
from pipeline.federation.plan import build_plan
from pipeline.federation.training import to_device
from tests.runs.small_runs import config

CPU = torch.device("cpu")
SOLVED = {"method": "closed-form", "held_out": ((),)}
ON = {"start": "closed-form", "head": "classifier", "mode": "FedAtTxt", "loss": "class",
      "optimizer": "sgd", "lr": 0.05, "weight_decay": 0.0, "weighting": "rows"}  # fmt: skip


def folds_of(table, **changed):
    plan = build_plan(table, config(**{**SOLVED, **changed}))
    cached = to_device(table, CPU)
    return plan, cached, with_closed_form(plan, cached).folds


def parts_of(row, table):
    width, classes = table.features.shape[1], len(table.class_names)
    parts = named(Kind("FedAtTxt", "classifier", width, classes), row)
    return parts["text_w"].numpy(), parts["text_b"].numpy()
