"""`ITPOTrainer`: TRL's GRPOTrainer with dialogues for completions and turn-wise advantages.

It adds to TRL's method and copies none of it: TRL samples through `rollout_func`, computes the clipped
loss, steps, saves and resumes; this class plays the dialogues, trains the PRM and the critic beside the
policy, and replaces the advantages in the batch.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback
from trl import GRPOTrainer
from trl.models.utils import unwrap_model_for_generation

from .batch_metrics import outcome_metrics, policy_metrics, speech_metrics
from .batching import regroup_by_length
from .chat import ChatFormat
from .companions import make_critic, make_prm, prm_lesson, value_lesson
from .config import ITPOConfig
from .dialogue import Dialogue, DialogueBatch, collate
from .errors import ItpoError
from .generation import CachedGenerator
from .learning import Experience, token_advantages, turn_credit
from .logprobs import loss_logprobs, token_logprobs
from .models import check_policy
from .out_of_memory import PLAYING, SCORING, TRAINING, memory_advice
from .prm import reference
from .processes import check_processes
from .replay import Judged, Replay
from .resuming import ResumableTrainer, check_save_steps
from .rollout import Episode, play
from .sidecar import Sidecar
from .tasks.base import Task
from .trl_rows import check_dataset, check_failures, goal_dataset, goal_of, outcome_reward, rollout_columns
from .true_credit import true_values
from .turn_judge import TurnJudge, weigh_turns
from .vllm_generation import VLLMBackend

BIG_VOCABULARY = 4096  # above it TRL's LM head costs too much on a CPU
ORDERLESS_LOSSES = ("dapo", "grpo", "dr_grpo", "cispo")  # no normalising within a slice


class ITPOTrainer(ResumableTrainer):
    """Multi-turn RL with turn-wise credit on any `Task`.

    Args: `model`, a causal LM; `args`; `task`; `chat`, the tokenizer's `ChatFormat`; `train_dataset`,
    rows of `prompt` and `goal_index` (default: the task's own goals); `peft_config`, to train adapters;
    `judge`, who weighs turns for credit "judge" (default: the task).
    """

    _tag_names = ["trl", "itpo"]
    args: ITPOConfig
    model: PreTrainedModel
    _buffered_inputs: Any

    def __init__(
        self,
        model: PreTrainedModel,
        args: ITPOConfig,
        task: Task,
        chat: ChatFormat,
        train_dataset: Dataset | None = None,
        callbacks: list[TrainerCallback] | None = None,
        peft_config: Any = None,
        judge: TurnJudge | None = None,
    ):
        self.task, self.chat, self.judge = task, chat, judge or task
        args.max_completion_length = task.limits.max_tokens
        groups = (args.generation_batch_size or 0) // args.num_generations  # TRL has set it by now
        if train_dataset is None:
            train_dataset = goal_dataset(task, n=max(groups, min(4096, groups * max(args.max_steps, 64))))
        check_dataset(train_dataset, groups)
        check_save_steps(args)
        check_processes(args, adapters=peft_config is not None)
        check_policy(model, peft_config, args.disable_dropout)
        frozen = None if peft_config is not None else copy.deepcopy(model).requires_grad_(False).eval()
        kl_coef, args.beta = args.beta, 0.0  # TRL must not load a second reference: ours serves KL and PRM
        super().__init__(
            model=model,
            reward_funcs=[outcome_reward],
            args=args,
            train_dataset=train_dataset,
            processing_class=chat.tokenizer,
            callbacks=callbacks,
            peft_config=peft_config,
            rollout_func=self._rollout,
        )
        self.kl_coef = args.beta = kl_coef
        shared = args.vllm_mode == "server" or args.vllm_tensor_parallel_size > 1  # calls of all processes go together
        self.vllm = VLLMBackend(self.vllm_generation, self.accelerator, shared) if args.use_vllm else None
        self.frozen = None if frozen is None else frozen.to(self.accelerator.device)
        policy = self.accelerator.unwrap_model(self.model)
        self.prm = make_prm(policy, args) if args.needs_prm else None
        self.replay = Replay(args.prm_replay) if args.needs_prm and args.prm_replay else None
        adapters = peft_config is not None
        self.critic = make_critic(policy, args, "critic", adapters) if args.estimator == "ppo" else None
        self.value_model = make_critic(policy, args, "value", adapters) if args.credit == "value" else None
        self.dialogues: list[Dialogue] = []  # the newest batch, for callbacks and widgets
        self.experience: Experience | None = None  # what was learned from it
        self._credit_seed = 0
        alone = self.accelerator.num_processes == 1 and self.accelerator.device.type == "cpu"
        self.light_head = alone and policy.config.get_text_config().vocab_size > BIG_VOCABULARY
        self._scoring = False  # inside TRL's scoring of a fresh batch
        self._generation = (-1, 0)  # optimizer step, and how many batches were played in it

    # -- rollout ---------------------------------------------------------------------------------

    def _episodes(self, inputs: Sequence[dict[str, Any]]) -> list[Episode]:
        """The goals of this batch with seeds that depend on (seed, step, row) alone, so resume is exact."""
        step = self.state.global_step
        played = self._generation[1] + 1 if self._generation[0] == step else 0
        self._generation = (step, played)
        first = self.accelerator.process_index * len(inputs)
        base = (self.args.seed * 1_000_003 + step * 64 + played) * 65_536 + first
        return [Episode(goal_of(self.task, row["goal_index"]), base + i) for i, row in enumerate(inputs)]

    def _rollout(self, prompts: list, trainer: GRPOTrainer) -> dict[str, list]:
        """TRL's rollout_func: play the dialogues of the batch at hand."""
        with self._timed("rollout"), self._playing() as policy, self._memory_advice(PLAYING):
            self.dialogues = play(
                policy,
                self.chat,
                self.task,
                self._batch_episodes,
                temperature=self.temperature,
                generator=self.vllm or CachedGenerator,
                waves=self.args.rollout_waves,
            )
            if self.vllm is not None:
                self.vllm.finish()
        return rollout_columns(self.dialogues)

    def _playing(self) -> AbstractContextManager[PreTrainedModel]:
        """The policy as it is when it plays dialogues."""
        gather = self.args.ds3_gather_for_generation
        return unwrap_model_for_generation(self.model_wrapped, self.accelerator, gather_deepspeed3_params=gather)

    def _get_per_token_logps_and_entropies(self, model: Any, input_ids: Tensor, *args: Any, **kwargs: Any) -> tuple:
        """While TRL scores a fresh batch it asks for the old log-probs: the sampler knows them exactly.

        In its loss, TRL's LM head is made for GPUs; the light head is ours.
        """
        if self._scoring and not self.use_vllm:
            width = input_ids.shape[1] - max(len(d.prompt_ids) for d in self.dialogues)
            sampled = collate(self.dialogues, self.chat.pad_id).logprobs.to(input_ids.device)
            return torch.nn.functional.pad(sampled, (0, max(0, width - sampled.shape[1]))), None, None
        if self.light_head:
            policy, (attention_mask, *_) = self.accelerator.unwrap_model(model), args
            with self.accelerator.autocast():
                return *loss_logprobs(policy, input_ids, attention_mask, self._loss_mask, self.temperature), None
        return super()._get_per_token_logps_and_entropies(model, input_ids, *args, **kwargs)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """TRL's loss; the light head must know the tokens that count in it."""
        self._loss_mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        return super()._compute_loss(model, inputs)

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """TRL's slices of the batch, regrouped by length where they all belong to one optimizer step."""
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        args, slices = self.args, self._buffered_inputs
        n_slices = args.steps_per_generation or 1
        one_step = n_slices <= args.gradient_accumulation_steps
        if slices is not None and slices is not before and one_step and args.loss_type in ORDERLESS_LOSSES:
            slices = regroup_by_length(slices)
            self._buffered_inputs, inputs = slices, slices[self._step % n_slices]
        return inputs

    # -- credit and advantages -------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self.beta, self._scoring = 0.0, True
        try:
            self._batch_episodes = self._episodes(inputs)
            output = super()._generate_and_score_completions(inputs)
            self._log({"failed": sum(bool(d.failure) for d in self.dialogues) / len(self.dialogues)})
            check_failures(self.dialogues, self.args.max_failed_share)
        except ItpoError as error:
            self._save_before_raising(error)
        finally:
            self._scoring = False
        batch = collate(self.dialogues, self.chat.pad_id).to(self.accelerator.device)
        with self._memory_advice(SCORING):
            advantages, ref_logprobs = self._learn_from(batch)
        for sidecar in self._sidecars():  # an adapter's gradients would count in the policy's gradient clip
            sidecar.optimizer.zero_grad()
        pad = (0, output["completion_ids"].shape[1] - advantages.shape[1])  # pad_to_multiple_of
        output["advantages"] = torch.nn.functional.pad(advantages, pad)
        if self.kl_coef and self.args.kl_in == "loss":
            self.beta = self.kl_coef
            # TRL takes exp(ref - policy) before it masks the user's tokens: far below 0, it is 0 there and not infinite
            masked = ref_logprobs.masked_fill(~batch.assistant_mask, -1e3)
            output["ref_per_token_logps"] = torch.nn.functional.pad(masked, pad)
        return output

    @torch.no_grad()
    def _learn_from(self, batch: DialogueBatch) -> tuple[Tensor, Tensor]:
        """Train PRM and critic on the batch; returns advantages and reference log-probs, both (B, T)."""
        device, policy = self.accelerator.device, self.accelerator.unwrap_model(self.model)
        outcomes = torch.tensor(
            [float("nan") if d.outcome is None else d.outcome for d in self.dialogues], device=device
        )
        turn_weights, valid = self._turn_weights(~outcomes.isnan())
        with self._timed("reference"), reference(policy, self.frozen) as ref:
            ref_logprobs = token_logprobs(ref, batch, self.temperature, self.args.micro_batch_size)
            plain = ref_logprobs  # the PRM compares models, not samplers: always at temperature 1
            if self.prm is not None and self.temperature != 1:
                plain = token_logprobs(ref, batch, 1.0, self.args.micro_batch_size)
        log_ratio = (batch.logprobs - ref_logprobs) * batch.assistant_mask
        fresh = Judged(batch, plain, outcomes, valid)
        token_rewards = self._token_rewards(fresh)
        in_reward = self.kl_coef and self.args.kl_in == "reward"
        values = None if self.critic is None else self.critic.values(batch)
        turn_values = self._turn_values(fresh)
        everything = Experience(
            outcomes=self.accelerator.gather(outcomes),
            valid=self.accelerator.gather(valid),
            turn_ids=self._gather(batch.turn_ids),
            token_rewards=self._gather(token_rewards),
            penalties=self._gather(self.kl_coef * log_ratio) if in_reward else None,
            values=self._gather(values),
            turn_values=self._gather(turn_values),
            turn_weights=self._gather(turn_weights),
        )
        self.experience, self._credit_seed = everything, self._step_seed
        advantages, targets = token_advantages(
            self.args.rule, everything, self.args.num_generations, self.task.limits.max_turns, seed=self._credit_seed
        )
        first, width = self.accelerator.process_index * len(batch), batch.turn_ids.shape[1]
        rows = slice(first, first + len(batch))
        if self.critic is not None and values is not None and targets is not None:
            with torch.enable_grad():
                loss = self.critic.update(batch, values, targets[rows, :width], valid)
            self._log({"critic/loss": loss})
        self._log(outcome_metrics(everything, self.task.success_threshold, self.args.length_penalty))
        self._log(speech_metrics(self.dialogues))
        self._log(policy_metrics(policy, batch, log_ratio, self.temperature))
        return advantages[rows, :width], ref_logprobs

    def turn_credit(self) -> Tensor:
        """The credit of each turn of the newest batch, (B, K); all processes together."""
        if self.experience is None:
            raise ItpoError("no dialogue has been played yet: train for a step first")
        return turn_credit(self.args.rule, self.experience, self.task.limits.max_turns, self._credit_seed)

    @property
    def _step_seed(self) -> int:
        """One seed per training step, so that resume is exact."""
        return self.args.seed * 1_000_003 + self.state.global_step

    def _token_rewards(self, fresh: Judged) -> Tensor:
        """The PRM's token rewards (B, T); 0 without a PRM."""
        if self.prm is None:
            return torch.zeros_like(fresh.ref_logprobs)
        with self._timed("prm"):
            rewards, metrics = prm_lesson(self.prm, self.replay, fresh, self.args.prm_order, self._step_seed)
        self._log(metrics)
        return rewards

    def _turn_weights(self, valid: Tensor) -> tuple[Tensor | None, Tensor]:
        """The judge's weight of each turn (B, K), and `valid` without the dialogues that it could not judge."""
        if self.args.credit != "judge":
            return None, valid
        weights, judged = weigh_turns(self.judge, self.task, self.dialogues)
        self._log({"judge/failed": float((~judged).float().mean())})
        return weights.to(valid.device), valid & judged.to(valid.device)

    def _turn_values(self, fresh: Judged) -> Tensor | None:
        """What the dialogue was worth before each turn, (B, K): by the value model, or the truth (oracle)."""
        if self.value_model is not None:
            values, metrics = value_lesson(self.value_model, fresh, self.task.limits.max_turns)
            self._log(metrics)
            return values
        if self.args.credit != "oracle":
            return None
        m, seed = self.args.oracle_samples, self._step_seed
        with self._timed("oracle"), self._playing() as policy:
            truth = true_values(
                policy, self.chat, self.task, self.dialogues, m, temperature=self.temperature, seed=seed
            )
        return truth.values[:, :-1].to(fresh.outcomes.device, fresh.outcomes.dtype)

    def _gather(self, rows: Tensor | None) -> Any:
        """All processes' rows, right-padded with 0 to the longest, (B_all, T_all); None stays None."""
        return None if rows is None else self.accelerator.gather(self.accelerator.pad_across_processes(rows, dim=1))

    # -- failures --------------------------------------------------------------------------------

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        with self._memory_advice(TRAINING):
            return super().training_step(*args, **kwargs)

    def _memory_advice(self, doing: str) -> AbstractContextManager[None]:
        """Out of memory: say which knob helps."""
        return memory_advice(doing, self.args, adapters=self.frozen is None)

    def _save_before_raising(self, error: ItpoError) -> None:
        """No step has begun on this batch: the state is that of the last finished step, so save it."""
        step, saved = self.state.global_step, ""
        if step > 0 and self.accelerator.num_processes == 1:
            self._save_checkpoint(self.model, trial=None)
            saved = f" The run is saved at step {step} in {Path(str(self.args.output_dir)).name}; fix the cause, then resume."
        raise ItpoError(f"{error}{saved}") from error

    # -- metrics ---------------------------------------------------------------------------------

    def _log(self, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._metrics["train" if self.model.training else "eval"][name].append(value)

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        """Log the seconds of what is inside as `time/name`."""
        began = time.perf_counter()
        yield
        self._log({f"time/{name}": time.perf_counter() - began})

    def _sidecars(self) -> list[Sidecar]:
        """What trains beside the policy."""
        return [part.sidecar for part in (self.prm, self.critic, self.value_model) if part is not None]

    def _stateful(self) -> list[Sidecar | Replay]:
        """What a checkpoint holds beyond the policy."""
        return [*self._sidecars(), *([] if self.replay is None else [self.replay])]
