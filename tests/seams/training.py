"""Private names of ``snello.lab.training`` that tests use."""

# How a network is coded, and when again, without a journey.
from snello.lab.training._coding import coded as coded
from snello.lab.training._coding import coding_of as coding_of
from snello.lab.training._coding import measured_on as measured_on

# The numbers of images on a journey's page, without a journey.
from snello.lab.training._data import images_used as images_used

# Processes must start from one network, compared without a training.
from snello.lab.training._data import initial_model as initial_model

# The share of a batch that a process takes is arithmetic.
from snello.lab.training._distributed import share_of as share_of

# Whether a finished run may be extended is a rule on two recipes.
from snello.lab.training._extend import refusal as refusal

# What a journey does with finished runs, without training them.
from snello.lab.training._journey import ship as ship

# The lock of a run folder, held without a run.
from snello.lab.training._folder import claimed as claimed

# The marks of a row, from figures alone.
from snello.lab.training._flags import flag_of as flag_of

# Trainings and measurements are replaced by made-up ones, to see when a row is measured again.
from snello.lab.training import _reproduce as reproduction

# The learning rate as a function is compared with torch's schedulers.
from snello.lab.training._schedule import build_optimizer as build_optimizer
from snello.lab.training._schedule import lr_factor as lr_factor

# The fine-tuning that the round trip ends with, without the round trip.
from snello.lab.training._resting import compare_finetuning as compare_finetuning
