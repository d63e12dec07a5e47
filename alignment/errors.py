"""Every error alignflow raises on purpose.

AlignmentError
├── ConfigError(ValueError)         a setting is unknown, contradictory or without effect
├── DataError(ValueError)           a file or record cannot be used; names file, line and field
├── ModelError(ValueError)          a model folder is missing, damaged or lacks what is needed
├── NumericsError(ArithmeticError)  a loss, reward or gradient is not finite, or a budget broke
├── RewardError(RuntimeError)        a source of the reward failed or gave no usable scores
├── CheckpointError(RuntimeError)   a checkpoint lacks a part or belongs to another stage version
├── StoreError(RuntimeError)        the artifact store is locked, damaged or of another schema
├── LabelError(ValueError)          a label request the label service must refuse
├── ServerError(RuntimeError)        the Prefect server is away or refuses us
└── ClusterError(RuntimeError)      an actor died, a call timed out, or a plan does not fit
    ├── LostActorError               an actor's process died: the stage can go on from a checkpoint
    └── AbsentClusterError           the Ray cluster that a run names does not answer

Each takes one message, so each survives pickling between Ray and Prefect processes.
A message says what happened, the value seen, what is accepted and what to do.
"""


class AlignmentError(Exception):
    """Anything alignflow refuses or gives up on, with a message written for its reader."""


class ConfigError(AlignmentError, ValueError):
    """A setting is unknown, contradictory or without effect."""


class DataError(AlignmentError, ValueError):
    """A file or a record cannot be used. The message names file, line and field."""


class ModelError(AlignmentError, ValueError):
    """A model folder is missing, damaged or lacks what the stage needs."""


class NumericsError(AlignmentError, ArithmeticError):
    """A loss, reward or gradient is not finite, or a KL budget is broken."""


class RewardError(AlignmentError, RuntimeError):
    """A source of the reward did not answer, or not with one finite score a response."""


class CheckpointError(AlignmentError, RuntimeError):
    """A checkpoint lacks a part or was written by another stage version."""


class StoreError(AlignmentError, RuntimeError):
    """The artifact store is locked by another process, damaged or of another schema."""


class LabelError(AlignmentError, ValueError):
    """The label service refuses a request: unknown round, wrong ranking, closed round."""


class ServerError(AlignmentError, RuntimeError):
    """The Prefect server does not answer, or refuses what it was given to identify us."""


class ClusterError(AlignmentError, RuntimeError):
    """An actor died, a remote call timed out, or a placement plan does not fit."""


class LostActorError(ClusterError):
    """An actor's process died; the stage may be tried again from its newest checkpoint."""


class AbsentClusterError(ClusterError):
    """The Ray cluster at `cluster.address` does not answer; it may be about to be restarted."""
