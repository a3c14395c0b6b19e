"""Names that have changed, for the one line that an old name in a YAML file or a checkpoint costs."""

from __future__ import annotations

CLASSES: dict[str, str] = {
    "AnnotatedMNISTDataModule": "ResidentDataModule with `source: PseudoLabels`",
    "Answerer": "RelationNetwork",
    "AttentionMaps": "AttentionMapsLogger",
    "Compiled": "TorchCompile",
    "ContrastiveInversion": "InversionDistiller with `synthesizer: GeneratorInversion`",
    "ContrastiveInversionDistiller": "InversionDistiller with `synthesizer: GeneratorInversion`",
    "DataFreeMNISTDataModule": "NoiseDataModule with `source: MNIST` and `num_channels: 3`",
    "DigitGraphDataModule": "KNNGraphDataModule with a `source`",
    "DigitScenesDataModule": "ResidentDataModule with `source: MNIST` and `views: DigitScenes`",
    "DigitsEncoder": "LabelEncoder",
    "Exits": "MultiExitNetwork",
    "FashionMNISTDataModule": "ResidentDataModule with `source: FashionMNIST` and `num_channels: 3`",
    "FixedDistribution": "ConstantPrior",
    "Gate": "GatingNetwork",
    "InBFloat16": "BFloat16Autocast",
    "LeanLoop": "FastLoop",
    "MomentumTeacher": "EMATeacher",
    "MovingTeacher": "EvolvingTeacher",
    "OnlineAdversarial": "OnlineAdversarialDistiller",
    "PairedViewsDataModule": "ResidentDataModule with `source: MNIST`, `num_channels: 3` and `views: PairedViews`",
    "PseudoExamples": "PseudoExamplesDistiller",
    "Ramp": "SigmoidRampUp",
    "Realism": "GeneratorAdversarialLoss",
    "RotatedMNISTDataModule": "ResidentDataModule with `source: Rotated` and `num_channels: 3`",
    "RowReader": "GRUClassifier",
    "Rows": "RowSequence",
    "Steps": "PiecewiseConstant",
    "SyntheticImages": "SyntheticImagesLogger",
    "SyntheticInputs": "SyntheticInputsDistiller",
    "digest": "weights_hash",
    "inherit": "copy_layers",
    "is_left_out": "is_excluded_from_state_dict",
    "leave_out": "exclude_from_state_dict",
    "take_back": "include_in_state_dict",
    "watch": "record_activations",
}
"""The old name of a class or function; its new name, or how it is written now."""

ARGUMENTS: dict[tuple[str, str], str] = {
    ("AttentionMapsLogger", "images"): "num_images",
    ("BornAgain", "epochs"): "epochs_per_generation",
    ("Classifier", "view"): "input_key",
    ("CrossModalDistiller", "views"): "modalities",
    ("DatasetDistillation", "channels"): "image_shape",
    ("DatasetDistillation", "rate"): "lr",
    ("DatasetDistillation", "size"): "image_shape",
    ("GeneralEnsemble", "networks"): "num_networks",
    ("Generator", "channels"): "image_shape",
    ("Generator", "size"): "image_shape",
    ("InversionDistiller", "bank_size"): "memory_size",
    ("InversionDistiller", "channels"): "synthesizer.init_args.image_shape",
    ("InversionDistiller", "every"): "synthesis_interval",
    ("InversionDistiller", "image_optimizer"): "synthesizer.init_args.image_optimizer",
    ("InversionDistiller", "image_steps"): "synthesizer.init_args.synthesis_steps",
    ("InversionDistiller", "image_terms"): "synthesizer.init_args.image_terms",
    ("InversionDistiller", "jitter"): "synthesizer.init_args.jitter",
    ("InversionDistiller", "round_size"): "synthesis_batch_size",
    ("InversionDistiller", "size"): "synthesizer.init_args.image_shape",
    ("InversionDistiller", "targets"): "synthesizer.init_args.targets",
    ("LossSchedule", "number"): "attribute",
    ("MNISTDataModule", "views"): "num_augmented_views",
    ("MultiExitNetwork", "answer"): "output_exit",
    ("ONE", "branches"): "num_branches",
    ("SceneEncoder", "across"): "parts_per_side",
    ("SnapshotTeacher", "every"): "interval",
    ("SourceDataModule", "channels"): "num_channels",
    ("SourceDataModule", "epoch_steps"): "steps_per_epoch",
    ("SyntheticImagesLogger", "images"): "num_images",
    ("TeacherCache", "folder"): "cache_dir",
}
"""The present name of a class, of a base of it, or of a function, and the old name of an argument; its new name, dotted
where it is now an argument of an argument."""

COMPARE_KEYS: dict[str, str] = {"network": "evaluate", "set": "overrides"}
"""The old name of a key of a compare file; its new name."""


def renamed_class(class_path: str) -> str | None:
    """The new name of a class, by the last part of its dotted old name; None if it has not changed.

    Example:
        >>> renamed_class("kd_lightning.data.Rows")
        'RowSequence'
    """
    return CLASSES.get(class_path.rpartition(".")[2])


def renamed_argument(owner: object, name: str) -> str | None:
    """The new name of an argument of a class or function; None if it has not changed.

    Example:
        >>> from kd_lightning.data import MNISTDataModule
        >>> renamed_argument(MNISTDataModule, "epoch_steps")
        'steps_per_epoch'
    """
    owners = owner.__mro__ if isinstance(owner, type) else (owner,)
    names = [(getattr(each, "__name__", ""), name) for each in owners]
    return next((ARGUMENTS[known] for known in names if known in ARGUMENTS), None)
