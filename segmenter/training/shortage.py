"""What PyTorch, NumPy and the system raise where memory, files or a process run out, in words that say what to do."""

import torch


def shortage(error: Exception) -> str | None:
    """What a run has too little of, as an error says, and which options need less of it; None for any other error."""
    told = str(error)
    if "Too many open files" in told:
        return "too many open files; lower --workers, or allow more by `ulimit -n`"
    if "DataLoader worker" in told:
        return (
            f"a process that loads images died ({told.splitlines()[-1].strip()}), mostly for lack of memory or of room"
            " in /dev/shm; lower --workers, or pass --accumulate 2 (or more), and start again to go on"
        )
    # a CPU's allocator has no class of its own
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in told:
        advice = "pass --accumulate 2 (or more) or --amp bf16, lower --crop, or take a smaller network"
        return f"too little memory ({told.splitlines()[0][:200] if told else 'Python has no more'}); {advice}"
    return None
