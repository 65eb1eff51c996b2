"""The evaluation of a sweep's students."""

from __future__ import annotations

from jobs.distill.models import new_student
from jobs.evaluate.evaluator import Evaluator
from jobs.evaluate.models import EvaluatedModels
from jobs.sweep.trainer import TrialTrainer
from jobs.sweep.trials import trials_of
from jobs.worker.context import WorkerContext
from tinymusician.evaluate.generators import Generator, TorchGenerator
from tinymusician.models.conditional_decoder import ConditionedDecoder
from tinymusician.models.guidance import set_default_guidance


class SweepModels(EvaluatedModels):
    """The models of an evaluation, and the students of the sweep's trials."""

    def __init__(self, context: WorkerContext) -> None:
        super().__init__(context)
        self.trainer, self._device = TrialTrainer(context), context.device
        self.trials = {trial.model_id: trial for trial in trials_of(context.recipe)}

    def open(self, reference: str) -> Generator:
        """Load a model, or a student that was trained."""
        if reference not in self.trials:
            return super().open(reference)
        trial, models = self.trials[reference], self.trainer.models
        student = new_student(trial.recipe, models.teacher)
        ConditionedDecoder(student).load_state_dict(self.trainer.weights(trial))
        set_default_guidance(student, self.settings.guidance, trial.recipe.teacher.target == "guided")
        return TorchGenerator(student, models.tokenizer, self._device)


class SweepEvaluator(Evaluator):
    """An evaluation whose models are the students of a sweep."""

    models: SweepModels

    def open_models(self) -> SweepModels:
        """The teacher and the students."""
        return SweepModels(self.context)
