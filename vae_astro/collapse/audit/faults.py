"""Every fault that an audit can find: why it matters, how to mend it, what follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["CATALOGUE", "Entry", "Severity"]

Severity = Literal["fatal", "serious", "minor"]


@dataclass(frozen=True)
class Entry:
    """What is known of a fault before any model is looked at.

    Attributes
    ----------
    severity : {"fatal", "serious", "minor"}
        ``fatal``: no training can give a code that says something; ``serious``: the training is
        not that of the VAE that was meant; ``minor``: it costs quality.
    why, mend : str
        Why it matters, and how to mend it.
    hides : tuple of str
        Findings that follow from this one and are left out beside it.
    """

    severity: Severity
    why: str
    mend: str
    hides: tuple[str, ...] = ()


_DECODER_IS_DEAF = ("units-without-gradient", "gradient-cut", "output-ignores-input")
_NO_NOISE = ("noise-shared", "noise-frozen", "noise-scale", "noise-biased", "noise-formula",
             "noise-exp-log-var", "log-var-without-gradient")  # fmt: skip

CATALOGUE: dict[str, Entry] = {
    # the output
    "output-shape": Entry(
        "fatal",
        "The loss compares pixels that do not belong to each other, or broadcasts.",
        "Give the decoder the stamp's shape: crop or pad at its end, or use layers whose sizes add "
        "up.",
    ),
    "not-finite": Entry(
        "fatal",
        "One NaN in a batch turns every weight into NaN at the first step.",
        "Look for the logarithm, division or exp that overflows; bound log-variances from below by "
        "a softplus, not by a NaN; check the stamps' range.",
    ),
    "softmax-output": Entry(
        "fatal",
        "A softmax makes its values sum to 1. Over a single channel it is 1 everywhere: no pixel "
        "can be fitted and no gradient reaches the code.",
        "Leave the last activation away (or a sigmoid, for pixels between 0 and 1).",
        ("decoder-ignores-code", "output-range", *_DECODER_IS_DEAF, "log-var-without-gradient"),
    ),
    "output-range": Entry(
        "serious",
        "Pixels that the decoder cannot reach keep their error whatever the code says, and the "
        "gradient fades where the last activation saturates.",
        "Leave the last activation away, or scale the stamps into its range: [0, 1] for a sigmoid "
        "(data.normalize.stretch=minmax), [-1, 1] for a tanh.",
    ),
    "output-ignores-input": Entry(
        "fatal",
        "Whatever is encoded, the same comes out: nothing can be learned about a stamp.",
        "Decode the code of the stamp: follow it from the encoder to the decoder.",
        (
            "gradient-cut",
            "log-var-without-gradient",
            "noise-formula",
            "noise-scale",
            "noise-biased",
        ),
    ),
    # the decoder and the code
    "decoder-ignores-code": Entry(
        "fatal",
        "A code that changes nothing in the output can only cost KL, so training sets it to the "
        "prior.",
        "Feed the code to the decoder; look for a dead rectifier or a saturated activation on its "
        "way out.",
        ("output-range", *_DECODER_IS_DEAF, "log-var-without-gradient"),
    ),
    "decoder-sees-input": Entry(
        "serious",
        "What reaches the output past the code needs no code: the cheapest way to fit the stamps "
        "is to leave it at the prior.",
        "Cut skip connections and teacher forcing; the decoder may see nothing but the code.",
        ("output-ignores-input",),
    ),
    "units-without-gradient": Entry(
        "serious",
        "No reconstruction ever moves these units: the KL takes them to the prior.",
        "Let the decoder use every unit (slices, masks, weights at zero), or make the code "
        "narrower.",
    ),
    "gradient-cut": Entry(
        "fatal",
        "The encoder never learns what the decoder needs; only the KL moves it.",
        "Remove detach(), .data, no_grad(), rounding or numpy between encoder and decoder.",
        ("log-var-without-gradient",),
    ),
    "log-var-without-gradient": Entry(
        "serious",
        "The reconstruction cannot ask for a narrower posterior, so the KL alone sets the "
        "variance, to that of the prior.",
        "Reparameterize: mean + exp(0.5 log_var) * eps with gradients through log_var.",
    ),
    # the encoder
    "encoder-ignores-input": Entry(
        "fatal",
        "All stamps share one posterior, so the code carries nothing.",
        "Look for a dead or saturated layer, a wrong axis or an input that is overwritten.",
        ("output-ignores-input", "code-too-narrow"),
    ),
    "log-var-copies-mean": Entry(
        "serious",
        "One number cannot be both: a stamp far from the origin gets a wide posterior, one near it "
        "a width of 1.",
        "A layer of its own for the log-variance, or twice the width and chunk(2, dim=1).",
    ),
    "dead-bottleneck": Entry(
        "fatal",
        "Hidden units before the code that are the same for every stamp carry nothing, and a dead "
        "rectifier has no gradient to come back by.",
        "SiLU or leaky ReLU there, smaller weights and biases, normalised stamps, a wider layer.",
        ("encoder-ignores-input", "output-ignores-input"),
    ),
    "bottleneck-can-die": Entry(
        "serious",
        "A rectified unit that is negative for every stamp never comes back, and with a handful of "
        "them one large step silences all: the code is then constant.",
        "Use SiLU or leaky ReLU before the code, and many units (128).",
    ),
    "saturated-bottleneck": Entry(
        "serious",
        "Hidden units at the end of their range tell stamps apart by sign at most, and their "
        "gradient has faded.",
        "Normalise the stamps, use smaller weights, or an activation without a ceiling.",
    ),
    "stamps-mixed": Entry(
        "serious",
        "The code of a stamp changes with its neighbours in the batch: it belongs to no stamp, and "
        "differs with the batch size.",
        "Check reshapes and transposes for the batch axis; no batch statistics in evaluation mode.",
    ),
    "mean-range": Entry(
        "serious",
        "The posterior means cannot cover the prior, so samples from the prior are decoded where "
        "no stamp has been.",
        "No activation on the layer of the means.",
    ),
    "log-var-range": Entry(
        "serious",
        "A posterior that cannot be much narrower than the prior drowns every code in noise.",
        "No activation on the layer of the log-variance; if it is bounded, then near -10 and 10.",
        ("log-var-stuck",),
    ),
    "log-var-stuck": Entry(
        "serious",
        "At a clamp the gradient is zero: these variances never move again.",
        "Bound log_var smoothly (softplus, tanh) or start it inside the clamp.",
        ("log-var-without-gradient",),
    ),
    "code-too-narrow": Entry(
        "minor",
        "The stamps differ in far more directions than the code has units, so most of their "
        "structure has nowhere to go.",
        "More latent units (model.latent_dim=16); project to two dimensions afterwards.",
    ),
    # the noise
    "noise-missing": Entry(
        "serious",
        "Without noise the code has no limit of its capacity: this is an autoencoder with a "
        "penalty, and its KL is no rate.",
        "Sample in training mode: mean + exp(0.5 log_var) * randn_like(mean).",
        _NO_NOISE,
    ),
    "noise-scale": Entry(
        "serious",
        "The KL is paid for noise of one size and the decoder sees another: the bound does not "
        "hold, and the posterior is not the one reported.",
        "Standard normal noise: randn_like, standard deviation 1.",
    ),
    "noise-exp-log-var": Entry(
        "serious",
        "exp(log_var) is the variance. Where it stands for the standard deviation the decoder sees "
        "other noise than the KL is paid for.",
        "std = exp(0.5 log_var).",
    ),
    "noise-formula": Entry(
        "serious",
        "The noise does not follow the log-variance as the KL assumes, so the bound does not hold.",
        "z = mean + exp(0.5 log_var) * randn_like(mean).",
        ("noise-scale", "log-var-without-gradient"),
    ),
    "noise-biased": Entry(
        "serious",
        "Noise that does not average to zero moves every code away from its mean.",
        "randn_like, not rand_like.",
        ("noise-scale",),
    ),
    "noise-shared": Entry(
        "serious",
        "One draw for many stamps or units is not independent noise: the gradient is far noisier, "
        "and the decoder can undo a shift that all share.",
        "Draw noise of the shape of the mean: randn_like(mean).",
        ("noise-biased",),
    ),
    "noise-frozen": Entry(
        "serious",
        "The same noise at every step is a constant that the decoder learns; nothing limits the "
        "code, and a seed set inside a model makes everything else repeat too.",
        "Draw new noise at every step and set no seed inside the model.",
        ("noise-biased", "noise-scale"),
    ),
    "noise-in-evaluation": Entry(
        "serious",
        "The same stamp gets another code each time, so embeddings and scores cannot be repeated.",
        "Encode to the mean in evaluation mode; dropout(training=self.training).",
    ),
    # the loss
    "kl-weight-collapses": Entry(
        "fatal",
        "Where beta * s2 is not below the largest eigenvalue of the stamps' covariance, the "
        "collapsed state is the optimum of a linear model and stable for any: collapse is certain "
        "on such stamps.",
        "Sum the squared error over pixels and the KL over units, learn sigma, and keep beta = 1; "
        "or lower the KL's weight by the factor that is measured here.",
    ),
    "kl-wrong-sign": Entry(
        "fatal",
        "The loss rewards distance from the prior: means and variances run away.",
        "KL = -0.5 * sum(1 + log_var - mean^2 - exp(log_var)), added to the loss.",
        ("kl-formula", "kl-missing-term"),
    ),
    "kl-missing": Entry(
        "serious",
        "Without a KL the posterior is free: an autoencoder, whose prior means nothing.",
        "Add 0.5 * sum(mean^2 + exp(log_var) - log_var - 1) to the loss, without detach().",
    ),
    "kl-missing-term": Entry(
        "serious",
        "Without one of its terms the KL has its minimum elsewhere than at the prior, or none.",
        "0.5 * sum(mean^2 + exp(log_var) - log_var - 1).",
        ("kl-formula",),
    ),
    "kl-log-var-taken-for-std": Entry(
        "serious",
        "The KL reads as a standard deviation what the sampling reads as a log-variance: one of "
        "the two is wrong.",
        "With log_var throughout: 0.5 * sum(mean^2 + exp(log_var) - log_var - 1).",
        ("kl-formula",),
    ),
    "kl-formula": Entry(
        "serious",
        "The gradients of the KL are not those of a Gaussian posterior against a unit Gaussian.",
        "0.5 * sum(mean^2 + exp(log_var) - log_var - 1).",
    ),
    "batch-size-in-kl-weight": Entry(
        "serious",
        "Reconstruction and KL are reduced over the batch in two ways, so the KL weight in effect "
        "changes with the batch size.",
        "Sum both over their own axes and average both over the batch.",
    ),
    "reconstruction-missing": Entry(
        "fatal",
        "The loss does not change with the output: there is nothing to learn from.",
        "Compare the output with the stamps in the loss, without detach().",
    ),
    "reconstruction-wrong-sign": Entry(
        "fatal",
        "The loss falls when the output moves away from the stamps.",
        "Minimise the error, or minus the log-density.",
    ),
    "loss-without-minimum": Entry(
        "fatal",
        "The loss falls without end as an output grows, so outputs run away and the KL is nothing "
        "beside them.",
        "Cross-entropy is for pixels between 0 and 1 (data.normalize.stretch=minmax); elsewhere "
        "the squared error or a Gaussian.",
    ),
    "loss-mixes-stamps": Entry(
        "serious",
        "The error of a stamp is taken against other stamps too: broadcasting, as a rule.",
        "Give output and stamps the same shape in the loss.",
        ("kl-weight-collapses",),
    ),
    # the module
    "mutates-input": Entry(
        "serious",
        "The loss then compares the output with stamps that the model itself has changed.",
        "No in-place operations (relu_, +=, indexing) on the input; clone it first.",
    ),
    "weights-outside-parameters": Entry(
        "serious",
        "An optimiser of model.parameters() never sees these weights, and no checkpoint keeps "
        "them.",
        "ModuleList or ModuleDict in place of a plain list or dict; nn.Parameter for a bare "
        "tensor.",
    ),
}
"""Every finding there is."""
