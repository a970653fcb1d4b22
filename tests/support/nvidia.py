"""A program named nvidia-smi that answers as real ones do: in XML, CSV and a matrix, with their exit codes."""

import dataclasses
import pathlib
import shlex
import stat

BROKEN = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. "
    "Make sure that the latest NVIDIA driver is installed and running.\n\n"
)

GPU = """\
	<gpu id="0000000{index}:{index}1:00.0">
		<product_name>{name}</product_name>
		<product_brand>{brand}</product_brand>
		<product_architecture>{architecture}</product_architecture>
		<display_mode>Disabled</display_mode>
		<persistence_mode>Enabled</persistence_mode>
		<mig_mode>
			<current_mig>{mig}</current_mig>
			<pending_mig>{mig}</pending_mig>
		</mig_mode>
		<minor_number>{index}</minor_number>
		<performance_state>P0</performance_state>
		<clocks_event_reasons>
			<clocks_event_reason_gpu_idle>Not Active</clocks_event_reason_gpu_idle>
			<clocks_event_reason_sw_power_cap>Active</clocks_event_reason_sw_power_cap>
			<clocks_event_reason_hw_slowdown>{slowdown}</clocks_event_reason_hw_slowdown>
			<clocks_event_reason_hw_thermal_slowdown>{slowdown}</clocks_event_reason_hw_thermal_slowdown>
			<clocks_event_reason_sw_thermal_slowdown>Not Active</clocks_event_reason_sw_thermal_slowdown>
		</clocks_event_reasons>
		<fb_memory_usage>
			<total>{memory_mib} MiB</total>
			<reserved>{reserved_mib} MiB</reserved>
			<used>{used_mib} MiB</used>
			<free>{free_mib} MiB</free>
		</fb_memory_usage>
		<ecc_mode>
			<current_ecc>{ecc}</current_ecc>
			<pending_ecc>{ecc}</pending_ecc>
		</ecc_mode>
{errors}
		<processes>
{processes}
		</processes>
	</gpu>
"""

ECC = """\
		<ecc_errors>
			<volatile>
				<sram_correctable>0</sram_correctable>
				<sram_uncorrectable_parity>0</sram_uncorrectable_parity>
				<sram_uncorrectable_secded>0</sram_uncorrectable_secded>
				<dram_correctable>3</dram_correctable>
				<dram_uncorrectable>{uncorrectable}</dram_uncorrectable>
			</volatile>
			<aggregate>
				<dram_uncorrectable>7</dram_uncorrectable>
			</aggregate>
		</ecc_errors>
		<retired_pages>
			<pending_retirement>N/A</pending_retirement>
		</retired_pages>
		<remapped_rows>
			<remapped_row_corr>0</remapped_row_corr>
			<remapped_row_unc>0</remapped_row_unc>
			<remapped_row_pending>{pending}</remapped_row_pending>
			<remapped_row_failure>{failed}</remapped_row_failure>
		</remapped_rows>"""

NO_ECC = """\
		<ecc_errors>
			<volatile>
				<sram_uncorrectable>N/A</sram_uncorrectable>
				<dram_uncorrectable>N/A</dram_uncorrectable>
			</volatile>
		</ecc_errors>
		<remapped_rows>N/A</remapped_rows>"""

PROCESS = """\
			<process_info>
				<gpu_instance_id>N/A</gpu_instance_id>
				<pid>{pid}</pid>
				<type>C</type>
				<process_name>/opt/conda/bin/python</process_name>
				<used_memory>{used_mib} MiB</used_memory>
			</process_info>"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    name: str
    memory_mib: int
    capability: str
    link: str = "PHB"
    ecc: bool = True
    count: int = 1
    driver: str = "580.95.05"
    used_mib: int = 1
    pids: tuple = ()
    uncorrectable: int = 0
    pending: str = "No"
    failed: str = "No"
    slowdown: str = "Not Active"
    mig: str = "Disabled"

    def xml(self) -> str:
        kind = "NVIDIA" if self.ecc else "GeForce"
        gpus = "".join(self._gpu(index, kind) for index in range(self.count))
        return (
            '<?xml version="1.0" ?>\n<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">\n<nvidia_smi_log>\n'
            f"	<timestamp>Tue Nov 24 12:00:00 2026</timestamp>\n	<driver_version>{self.driver}</driver_version>\n"
            f"	<cuda_version>13.0</cuda_version>\n	<attached_gpus>{self.count}</attached_gpus>\n"
            f"{gpus}</nvidia_smi_log>\n"
        )

    def _gpu(self, index: int, brand: str) -> str:
        errors = ECC.format(uncorrectable=self.uncorrectable, pending=self.pending, failed=self.failed)
        return GPU.format(
            index=index,
            name=self.name,
            brand=brand,
            architecture={"8.9": "Ada Lovelace", "8.0": "Ampere", "9.0": "Hopper", "7.0": "Volta"}[self.capability],
            mig=self.mig if self.ecc else "N/A",
            slowdown=self.slowdown,
            memory_mib=self.memory_mib,
            reserved_mib=600,
            used_mib=self.used_mib,
            free_mib=self.memory_mib - self.used_mib - 600,
            ecc="Enabled" if self.ecc else "N/A",
            errors=errors if self.ecc else NO_ECC,
            processes="\n".join(PROCESS.format(pid=pid, used_mib=self.used_mib) for pid in self.pids),
        )

    def topology(self) -> str:
        """The matrix as it is printed, escape codes of the underlined heading and a network card included."""
        names = [f"GPU{index}" for index in range(self.count)]
        head = "\x1b[4m\t" + "\t".join([*names, "NIC0", "CPU Affinity", "NUMA Affinity", "GPU NUMA ID"]) + "\x1b[0m\n"
        rows = ""
        for i, name in enumerate(names):
            cells = [" X " if i == j else self._joined(i, j) for j in range(self.count)]
            rows += "\t".join([name, *cells, "SYS", "0-63", "0", "N/A"]) + "\n"
        return head + rows + "NIC0\t" + "\t".join(["SYS"] * self.count) + "\t X \n\nLegend:\n\n  X    = Self\n"

    def _joined(self, i: int, j: int) -> str:
        return self.link if self.link.startswith("NV") or i // 4 == j // 4 else "SYS"


RTX_4090 = Card(name="NVIDIA GeForce RTX 4090", memory_mib=24564, capability="8.9", ecc=False)
CARDS = {
    "4090": RTX_4090,
    "8x4090": dataclasses.replace(RTX_4090, count=8),
    "A100": Card(name="NVIDIA A100-SXM4-80GB", memory_mib=81920, capability="8.0", link="NV12", count=8),
    "H100": Card(name="NVIDIA H100 80GB HBM3", memory_mib=81559, capability="9.0", link="NV18", count=8),
    "V100": Card(name="Tesla V100-SXM2-32GB", memory_mib=32768, capability="7.0", link="NV2", count=2),
}


def lines(card: Card, *, code: int = 0) -> list[str]:
    """What the doctor's probe tells of this card."""
    told = [f"smi={line}" for line in card.xml().splitlines()] + [f"smi=code {code}"]
    told += [f"topo={line}" for line in card.topology().splitlines()]
    return (
        told + [f"capability={card.capability}"] * card.count + [f"gpu={card.name}, {card.memory_mib} MiB"] * card.count
    )


def install(folder: pathlib.Path, card: Card | None = None, *, says: str = "", code: int = 0) -> pathlib.Path:
    """Put the program into a folder for PATH: a card's answers, or the same words and exit code to every question."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "nvidia-smi"
    if card is None:
        program.write_text(f"#!/bin/sh\nprintf %s {shlex.quote(says)}\nexit {code}\n")
    else:
        answers = {
            "-q -x": card.xml(),
            "topo -m": card.topology(),
            "--query-gpu=name,memory.total --format=csv,noheader": f"{card.name}, {card.memory_mib} MiB\n" * card.count,
            "--query-gpu=compute_cap --format=csv,noheader,nounits": f"{card.capability}\n" * card.count,
            "--query-compute-apps=pid --format=csv,noheader,nounits": "".join(f"{pid}\n" for pid in card.pids),
        }
        cases = "".join(f"{shlex.quote(asked)}) printf %s {shlex.quote(told)} ;;\n" for asked, told in answers.items())
        program.write_text(f'#!/bin/sh\ncase "$*" in\n{cases}*) echo "unexpected: $*" >&2; exit 2 ;;\nesac\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return folder
