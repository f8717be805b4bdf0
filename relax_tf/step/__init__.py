"""What happens in a training step, in the order in which data flows.

- `hard_pass`: the model is called as Keras would call it, and every stochastic layer's call leaves
  its record (`relax_tf.layers.passes`);
- `replay`: the hard pass again with one emission changed; `graph` says what is downstream of it,
  `folding` runs several as one, `particles` are the passes of a multi-sample bound;
- `estimation`: each estimator turns costs into a gradient at its layer's theta;
- `trainer`: `train_step`, two optimizers; `cost` is what it descends by default, `logs` what it
  shows, `evaluation` the other two steps; `finite` keeps NaN away from the weights,
  `foreign_seeds` saves the seeds of other layers, `strategies` says what `tf.distribute` cannot do;
- `certificate`: what all of it takes for granted, measured on the `first_batch` and later ones;
  `sharing` refuses networks that are two things at once.
"""
