"""Keras models on TensorFlow: one traced step."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from entangled import devices
from entangled.distribution import Probabilities
from entangled.errors import DataError
from entangled.experiment import Experiment
from entangled.participation.seam import SoftTarget
from peer.learner import Inputs, Meet
from peer.learners import tensorflow_adam
from peer.learners.keras_learner import KerasLearner, parts, same_in_training
from peer.loss import EntangledLoss

TRACING = threading.Lock()
"""Keras was not made for several threads that trace at once."""

REWRITES = {"arithmetic_optimization": False}
"""The graph optimizer must not regroup sums: without that, a compiled step equals the notebook's eager one to the
bit."""


def configure(device: str, threads: int, memory: float | None = None, peers: int = 1) -> None:
    """Choose device and CPU threads, and make every operation deterministic. Before anything else of TensorFlow's.

    Args:
        device: `auto` takes the first GPU if there is one, `cpu` none, `gpu:N` the one of that number.
        threads: for one operation; 0 leaves it to TensorFlow.
        memory: of the GPU's, a share up to 1, MiB above that; None lets it grow with what is needed.
        peers: of this process. Each needs a thread of TensorFlow's to itself while it waits within its graph for the
            others, of whom some may be here.

    Raises:
        DataError: there is no such GPU here, or it has less memory.
    """
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads if peers == 1 else max(threads, peers))
    tf.config.experimental.enable_op_determinism()
    tf.config.optimizer.set_experimental_options(REWRITES)
    gpus = tf.config.list_physical_devices("GPU")
    if device == "auto":
        chosen = gpus[:1]
    elif device == "cpu":
        chosen = []
    else:
        number = devices.number(device)
        if number >= len(gpus):
            raise DataError(f"there is no {device} here: TensorFlow sees {len(gpus)} GPUs")
        chosen = [gpus[number]]
    tf.config.set_visible_devices(chosen, "GPU")
    for gpu in chosen:
        if memory is None:
            tf.config.experimental.set_memory_growth(gpu, True)
        else:
            limit = tf.config.LogicalDeviceConfiguration(memory_limit=devices.memory_mib(memory, gpus.index(gpu)))
            tf.config.set_logical_device_configuration(gpu, [limit])


class TensorFlowLearner(KerasLearner):
    """`peer.learner.Learner` on TensorFlow."""

    def __init__(self, model: Any, optimizer: Any, loss: EntangledLoss) -> None:
        super().__init__(model, optimizer, loss)
        self._traced: dict[tuple[object, ...], tuple[Any, list[Any], list[Any]]] = {}
        """By graph and shapes: the graph, the variables that it takes beside its arguments, its outputs' types."""
        one_thread = tf.config.threading.get_intra_op_parallelism_threads() == 1
        self._here = one_thread and not tf.config.get_visible_devices("GPU")
        """Whether graphs run on the thread that calls them."""
        self._one_pass = same_in_training(model)
        self._meet: Meet | None = None
        self._failure: BaseException | None = None

    def step(self, x: Inputs, labels: npt.NDArray[np.float32], exchange: Meet) -> tuple[float, int]:
        """See `peer.learner.Learner.step`: one graph, with the exchange between forward and backward pass."""
        if not self._one_pass:
            return super().step(x, labels, exchange)
        self._meet, self._failure = exchange, None
        try:
            loss, correct = self._call(self._step_graph, x, labels)
        except tf.errors.OpError:
            raise self._failure or RuntimeError("the step failed") from None
        return float(loss), int(correct)

    def place(self, array: Inputs) -> Any:
        """See `peer.learner.Learner.place`: a tensor, or the array, where it is as good."""
        return array if self._here else tf.constant(array)

    def predict(self, x: Inputs) -> Probabilities:
        """See `peer.learner.Learner.predict`: `training=False`."""
        return self._call(self._predict_graph, x)[0].numpy()

    def update(
        self, x: Inputs, labels: npt.NDArray[np.float32], target: SoftTarget, shared: Inputs | None = None
    ) -> tuple[float, int]:
        """See `peer.learner.Learner.update`: `training=True`."""
        given = target.probabilities, np.array(target.weight, np.float32)
        if shared is None:
            loss, correct = self._call(self._update_graph, x, labels, *given)
        else:
            loss, correct = self._call(self._private_graph, x, labels, *given, shared)
        return float(loss), int(correct)

    def learn(self, x: Inputs, labels: npt.NDArray[np.float32]) -> tuple[float, int]:
        """See `peer.learner.Learner.learn`: `training=True`."""
        loss, correct = self._call(self._alone_graph, x, labels)
        return float(loss), int(correct)

    def _call(self, graph: Callable[..., Any], *arrays: Any) -> Any:
        """Call a graph traced for just these shapes: its outputs.

        Without tf.function's own dispatch, nor the concrete function's. A function would be handed over to a thread of
        TensorFlow's, and its end back to this one, which costs a small model half of its step. TensorFlow runs a single
        operation on the thread that asks for it, though, and calling a function is an operation, too.
        """
        key = graph.__name__, *(tuple(array.shape) for array in arrays)
        if key not in self._traced:
            with TRACING:
                traced = tf.function(graph).get_concrete_function(*(tf.TensorSpec(a.shape, a.dtype) for a in arrays))
            types = [output.dtype for output in traced.outputs]
            self._traced[key] = traced.inference_fn, traced.captured_inputs, types
        function, captured, types = self._traced[key]
        if not self._here:
            return function.call_flat(*map(tf.constant, arrays), *captured)
        return tf.raw_ops.StatefulPartitionedCall(
            args=[*arrays, *captured], Tout=types, f=function, config_proto=_rewrites()
        )

    def _predict_graph(self, x: Any) -> Any:
        return self.model(x, training=False)

    def _step_graph(self, x: Any, labels: Any) -> Any:
        def loss(own: Any) -> Any:
            answer = tf.numpy_function(self._exchanged, [own], tf.float32)
            answer.set_shape(1 + own.shape.num_elements())
            return self.loss(labels, own, tf.reshape(answer[1:], own.shape), answer[0])

        return self._descend(x, labels, loss)

    def _exchanged(self, own: Probabilities) -> npt.NDArray[np.float32]:
        """The exchange as an operation of the graph: λ and the others' probabilities.

        One array, for TensorFlow reads numpy's version anew for each that it is given, which takes longer than all else
        of this. It would also make an error of its own of ours.
        """
        try:
            if self._meet is None:
                raise RuntimeError("there is nobody to exchange with")
            target = self._meet(own)
        except BaseException as error:
            self._failure = error
            raise
        answer = np.empty(1 + own.size, np.float32)
        answer[0], answer[1:] = target.weight, target.probabilities.ravel()
        return answer

    def _update_graph(self, x: Any, labels: Any, others: Any, weight: Any) -> Any:
        return self._descend(x, labels, lambda own: self.loss(labels, own, others, weight))

    def _private_graph(self, x: Any, labels: Any, others: Any, weight: Any, shared: Any) -> Any:
        def loss(own: Any) -> Any:
            return self.loss(labels, own, others, weight, tf.identity(self.model(shared, training=True)))

        return self._descend(x, labels, loss)

    def _alone_graph(self, x: Any, labels: Any) -> Any:
        return self._descend(x, labels, lambda own: self.loss.alone(labels, own))

    def _descend(self, x: Any, labels: Any, loss_of: Callable[[Any], Any]) -> Any:
        with tf.GradientTape() as tape:
            # Behind an identity, Keras takes the probabilities as they are, clipped at 1e-7; else it would find the
            # logits that the softmax made them from.
            own = tf.identity(self.model(x, training=True))
            loss = loss_of(own)
            objective = tf.add_n([loss, *self.model.losses]) if self.model.losses else loss
        variables = self.model.trainable_variables
        gradients = tape.gradient(objective, variables)
        if tensorflow_adam.plain(self.optimizer, gradients, variables):
            tensorflow_adam.apply(self.optimizer, gradients, variables)
        else:
            self.optimizer.apply(gradients, variables)
        right = tf.equal(tf.argmax(own, axis=1), tf.argmax(labels, axis=1))
        return loss, tf.reduce_sum(tf.cast(right, tf.int32))


@cache
def _rewrites() -> bytes:
    """`REWRITES` as a call takes them."""
    config = tf.compat.v1.ConfigProto()
    rewrites = config.graph_options.rewrite_options
    for name, wanted in REWRITES.items():
        setattr(rewrites, name, rewrites.ON if wanted else rewrites.OFF)
    return config.SerializeToString()


def learner(experiment: Experiment, peer: str, shape: tuple[int, ...], classes: int) -> TensorFlowLearner:
    """The learner that the experiment describes for one of its peers, untrained."""
    return TensorFlowLearner(*parts(experiment, peer, shape, classes))


def devices_in_use() -> str:
    """The framework and what it computes on, for people."""
    visible = tf.config.get_visible_devices("GPU")
    names = [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in visible]
    return f"TensorFlow {tf.__version__} computes on {', '.join(names) or 'the CPU'}"
