"""Names what a configuration of trainer.main may configure, as "module:name [as GIN_NAME]".

These are names, not imports, so that --help can list them without importing TensorFlow.
"""

# Left out: LossScaleOptimizer, because bfloat16 needs no scaling of the loss; MultiOptimizer,
# because train.make_head_optimizer sets a rate for the head; ScheduleFreeAdamW, because the weights
# that it trains last are not those to evaluate.
_OPTIMIZERS = (
    *("Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "Ftrl", "Lamb", "Lion"),
    *("Muon", "Nadam", "RMSprop", "SGD"),
)
_SCHEDULES = (
    *("CosineDecay", "CosineDecayRestarts", "ExponentialDecay", "InverseTimeDecay"),
    *("PiecewiseConstantDecay", "PolynomialDecay"),
)

CONFIGURABLES = (
    "trainer.training.settings:TrainSettings as train",
    "trainer.evaluation.evaluate:evaluate",
    "trainer.export.export:export",
    "trainer.models.embedding_model:build_model",
    "tripletmill.losses.triplet:batch_triplets",
    "tripletmill.losses.triplet:hard_triplets",
    "tripletmill.losses.triplet:semihard_triplets",
    "trainer.distributed.strategy:make_strategy",
    "trainer.data.batch_plan:BatchPlan",
    "trainer.data.augmentation:Augmentation",
    "trainer.data.reading:Reading",
    "trainer.training.optimizers:WarmupCosine",
    *(f"keras.optimizers:{name}" for name in _OPTIMIZERS),
    *(f"keras.optimizers.schedules:{name}" for name in _SCHEDULES),
)
# The configurables that each mode of trainer.main calls.
CALLED = {"train": ("train", "evaluate"), "evaluate": ("evaluate",), "export": ("export",)}
# Parameters that the trainer sets, so that no configuration needs to.
SET_BY_PROGRAM = (
    "train.configuration",
    *("evaluate.configuration", "evaluate.check_only", "export.configuration"),
    *("BatchPlan.index", "BatchPlan.seed", "BatchPlan.num_hosts", "BatchPlan.host"),
    *("batch_triplets.labels", "batch_triplets.embeddings"),
    *("hard_triplets.labels", "hard_triplets.embeddings"),
    *("semihard_triplets.labels", "semihard_triplets.embeddings"),
)
