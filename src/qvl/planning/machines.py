"""Devices to plan for, by what their makers say of them. Dense figures, without sparsity."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 1024**3


@dataclass(frozen=True)
class Machine:
    """memory_gib: what a process can have of it. bandwidth: of the memory, in bytes a second. flops: 16-bit, with sums
    in float32, a second. link: bytes a second that a device sends to its neighbours of the same node; between_nodes: to
    those of others, of which there are when more than `per_node` devices are used. latency: seconds before the first
    byte of an exchange arrives.
    """

    name: str
    memory_gib: float
    bandwidth: float
    flops: float
    link: float
    between_nodes: float
    per_node: int = 8
    latency: float = 10e-6

    @property
    def memory(self) -> int:
        return int(self.memory_gib * GIB)

    def sending(self, devices: int) -> float:
        """Bytes a second of an exchange among so many."""
        return self.link if devices <= self.per_node else min(self.link, self.between_nodes)


MACHINES: tuple[Machine, ...] = (
    Machine("A100-80G", 79, 2.04e12, 312e12, 300e9, 25e9),  # SXM, NVLink 3, 200 Gb/s a device
    Machine("H100", 79, 3.35e12, 989e12, 450e9, 50e9),  # SXM, NVLink 4, 400 Gb/s a device
    Machine("H200", 139, 4.8e12, 989e12, 450e9, 50e9),
    Machine("A10", 22, 0.6e12, 125e12, 32e9, 1.5e9, 8, 20e-6),  # PCIe 4, 100 Gb/s a node
    Machine("4090", 23.5, 1.01e12, 165e12, 32e9, 1.5e9, 8, 20e-6),
)
