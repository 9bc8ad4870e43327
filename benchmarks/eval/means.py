"""Means of tasks, each the mean of its prompts, and their intervals."""
DRAWS = 2000
EDGE = DRAWS // 40  # resamples outside of a 95 % interval at either end


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def interval(tasks, draw):
    """Of the mean of the tasks' means, by the percentile bootstrap over prompts within each task; `draw` is a random.Random. None
    where a task has one prompt, which says nothing of how prompts differ."""
    if min(len(t) for t in tasks) < 2:
        return None
    means = sorted(mean(mean(draw.choices(t, k=len(t))) for t in tasks) for _ in range(DRAWS))
    return means[EDGE], means[-EDGE - 1]
