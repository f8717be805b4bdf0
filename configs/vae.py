"""The fields of a VAE experiment and their defaults; the other VAE configs start from here."""

import ml_collections


def get_config():
    config = ml_collections.ConfigDict()
    # Data.
    config.dataset = "mnist"
    config.data_dir = ""  # TFDS's default folder, or TFDS_DATA_DIR
    config.binarization = "static_bernoulli"
    config.splits = ()  # TFDS splits for training, validation (and test); (): the dataset's own
    # Model.
    config.architecture = "linear1"  # or "linear2", "nonlinear", "nonlinear_wide", "categorical"
    config.units = 200  # Bernoulli units per stochastic layer
    config.num_variables = 20  # of "categorical"
    config.num_classes = 10
    config.tanh_units = (200, 200)  # before each linear map of "nonlinear"
    # Gradient estimator: any id of relax_tf.estimators for discrete variables.
    config.estimator = "relaxed_rebar"
    config.temperature = 0.5
    config.coupled = True
    config.baseline_decay = 0.0  # of `reinforce`: of its moving average; 0 for no baseline
    config.estimator_settings = ml_collections.ConfigDict()  # its further arguments, by name
    config.hidden_units = (200, 200)  # of the control-variate network
    # Optimisation.
    config.steps = 100_000
    config.batch_size = 24
    config.learning_rate = 1e-3
    config.decay_to = 1.0  # the fraction of it that is left after `steps`, along a cosine
    config.beta_2 = 0.999
    config.control_variate_learning_rate = 1e-3
    config.control_variate_weight_decay = 0.0
    config.control_variate_update_every = 1
    config.warmup_steps = 0  # in which only the control variate trains
    config.seed = 0
    # Execution.
    config.log_every = 5_000  # steps between rows of metrics.csv, and between checkpoints
    config.jit_compile = True
    config.steps_per_execution = 50
    config.iwae_samples = 100  # of the bound in results.json
    config.verbose = 1
    return config
