"""What the loss at learned positions costs against the plain one: seconds and memory of forward and backward.

    python benchmarks/loss.py [--vocabulary 151936] [--hidden 256] [--tokens 1100] [--learned 0.6]

Each way runs in a process of its own, in turn; both give the same loss and the same gradients.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time


def measure(way: str, options: argparse.Namespace) -> None:
    import torch
    from torch import nn
    from torch.nn import functional

    from llmtune.models.chunked_loss import supervised_cross_entropy

    torch.manual_seed(0)
    head = nn.Linear(options.hidden, options.vocabulary, bias=False).requires_grad_(not options.frozen)
    hidden = torch.randn(options.tokens, options.hidden, requires_grad=True)
    labels = torch.randint(0, options.vocabulary, (options.tokens,))
    labels[torch.rand(options.tokens) > options.learned] = -100
    learned = labels != -100
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(options.repeats):
        hidden.grad = head.weight.grad = None
        started = time.perf_counter()
        if way == "plain":
            loss = functional.cross_entropy(head(hidden), labels, reduction="sum")
        else:
            loss, _ = supervised_cross_entropy(hidden[learned], head, labels[learned])
        loss.backward()
        times.append(time.perf_counter() - started)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    found = {"seconds": statistics.median(times), "mib": grown / 1024, "loss": loss.item()}
    print(json.dumps(found | {"norm": hidden.grad.norm().item()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=151936)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=1100)
    parser.add_argument("--learned", type=float, default=0.6)
    parser.add_argument("--frozen", action="store_true", help="the head is not trained, as under LoRA")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        measure(options.way, options)
        return
    found = {}
    for way in ("plain", "learned"):
        done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--way", way], capture_output=True, check=True)
        found[way] = json.loads(done.stdout)
        cost = f"{found[way]['seconds']:.3f} s, {found[way]['mib']:,.0f} MiB more"
        print(f"{way:<8} {cost}, loss {found[way]['loss']:.2f}, gradient norm {found[way]['norm']:.4f}")
    faster, smaller = (found["plain"][name] / found["learned"][name] for name in ("seconds", "mib"))
    print(f"{faster:.2f} times as fast, {smaller:.1f} times less memory")


if __name__ == "__main__":
    main()
