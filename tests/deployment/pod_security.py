"""The Pod Security Standard "restricted", as a list of what a pod does not keep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip
_SECCOMP = {"RuntimeDefault", "Localhost"}
_FLAGS: dict[str, list[object]] = {
    "allowPrivilegeEscalation": [False],
    "privileged": [None, False],
    "procMount": [None, "Default"],
}
_SELINUX = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
_SYSCTLS = {
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem",
}  # fmt: skip


def violations(pod: dict[str, Any]) -> list[str]:
    """Return the fields of a pod's specification that "restricted" forbids or lacks."""
    return sorted(
        {*_of_pod(pod), *(found for container in _containers(pod) for found in _of_container(pod, container))}
    )


def _containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    kinds = ("initContainers", "containers", "ephemeralContainers")
    return [container for kind in kinds for container in pod.get(kind, [])]


def _of_pod(pod: dict[str, Any]) -> Iterator[str]:
    yield from (name for name in ("hostNetwork", "hostPID", "hostIPC") if pod.get(name))
    for volume in pod.get("volumes", []):
        yield from (f"volumes.{kind}" for kind in volume.keys() - {"name"} if kind not in _VOLUMES)
    context = pod.get("securityContext", {})
    yield from (f"sysctls.{one['name']}" for one in context.get("sysctls", []) if one["name"] not in _SYSCTLS)
    yield from _of_context(context)


def _of_container(pod: dict[str, Any], container: dict[str, Any]) -> Iterator[str]:
    context = container.get("securityContext", {})
    both = {**pod.get("securityContext", {}), **context}
    yield from _of_context(context)
    if any(port.get("hostPort") for port in container.get("ports", [])):
        yield "hostPort"
    yield from (name for name, allowed in _FLAGS.items() if context.get(name) not in allowed)
    capabilities = context.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", []):
        yield "capabilities.drop"
    if set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        yield "capabilities.add"
    if both.get("runAsNonRoot") is not True:
        yield "runAsNonRoot"
    if both.get("seccompProfile", {}).get("type") not in _SECCOMP:
        yield "seccompProfile"


def _of_context(context: dict[str, Any]) -> Iterator[str]:
    """What a pod's and a container's context must both keep."""
    if context.get("runAsUser") == 0:
        yield "runAsUser"
    if context.get("windowsOptions", {}).get("hostProcess"):
        yield "hostProcess"
    if context.get("appArmorProfile", {}).get("type") == "Unconfined":
        yield "appArmorProfile"
    selinux = context.get("seLinuxOptions", {})
    if selinux.get("type", "") not in _SELINUX or selinux.get("user") or selinux.get("role"):
        yield "seLinuxOptions"
