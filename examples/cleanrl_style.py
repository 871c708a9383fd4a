"""PPO with a Memory Transformer-XL in one file: `python examples/cleanrl_style.py`.

It trains on CartPole-v1, with truncation and NEXT_STEP autoreset handled as in the library.
"""

import gymnasium
import torch
from torch import nn
from torch.distributions import Categorical

from mtxl_rl import MemoryTransformer, TorsoConfig
from mtxl_rl.agents.returns import gae

NUM_ENVS, NUM_STEPS, NUM_EPOCHS, WIDTH = 8, 64, 3, 64
GAMMA, GAE_LAMBDA, CLIP_COEF, VALUE_COEF = 0.99, 0.95, 0.2, 0.005


def train(num_iterations: int = 20) -> None:
    """Train for `num_iterations` rollouts, and print the episodes' mean length in each."""
    torch.manual_seed(0)
    envs = gymnasium.make_vec("CartPole-v1", num_envs=NUM_ENVS)
    torso = MemoryTransformer(TorsoConfig(width=WIDTH, window_length=16, segment_length=16))
    encoder, actor, critic = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 2), nn.Linear(WIDTH, 1)
    agent = nn.ModuleList([encoder, torso, actor, critic])
    optimizer = torch.optim.Adam(agent.parameters(), lr=1e-3)

    observation, _ = envs.reset(seed=0)
    state = torso.initial_state(NUM_ENVS)
    is_first = torch.ones(NUM_ENVS, dtype=torch.bool)  # this observation starts an episode
    is_reset_row = torch.zeros(NUM_ENVS, dtype=torch.bool)  # it ends one; its action is ignored

    for iteration in range(num_iterations):
        start, rows = state, []
        cache = torso.prefill(state, num_steps=NUM_STEPS)
        for _ in range(NUM_STEPS):
            x = torch.as_tensor(observation)
            with torch.no_grad():
                y = torso.decode_step(encoder(x), cache, is_first)
                policy, value = Categorical(logits=actor(y)), critic(y)[:, 0]
                action = policy.sample()
            observation, reward, terminated, truncated, _ = envs.step(action.numpy())
            reward, terminated = torch.as_tensor(reward).float(), torch.as_tensor(terminated)
            log_prob = policy.log_prob(action)
            rows.append((x, is_first, ~is_reset_row, action, log_prob, value, reward, terminated))
            is_first, is_reset_row = is_reset_row, terminated | torch.as_tensor(truncated)
        x, first, valid, action, log_prob, value, reward, terminated = (
            torch.stack(column, dim=1) for column in zip(*rows, strict=True)
        )
        state = cache.state()
        with torch.no_grad():
            y, _ = torso(encoder(torch.as_tensor(observation))[:, None], state, is_first[:, None])
            last_value = critic(y)[:, 0, 0]
        advantage = gae(
            reward, terminated, valid, value, last_value, gamma=GAMMA, gae_lambda=GAE_LAMBDA
        )

        for epoch in range(NUM_EPOCHS):
            y, _ = torso(encoder(x), start, first)  # all steps, gradients through the memory
            ratio = (Categorical(logits=actor(y)).log_prob(action) - log_prob).exp()
            if epoch == 0:
                assert (ratio - 1).abs().max() < 1e-4, "acting and learning differ"
            clipped = ratio.clamp(1 - CLIP_COEF, 1 + CLIP_COEF)
            surrogate = torch.minimum(ratio * advantage, clipped * advantage)
            value_loss = (critic(y)[..., 0] - value - advantage).square()
            loss = ((VALUE_COEF * value_loss - surrogate) * valid).sum() / valid.sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        num_episodes = max(int((~valid).sum()), 1)  # a reset row follows each end
        print(f"iteration {iteration + 1}: {reward.sum() / num_episodes:.0f} steps per episode")
    envs.close()


if __name__ == "__main__":
    train()
