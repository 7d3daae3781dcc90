# Who boots next, for U-Boot. Compiled with
#   mkimage -A arm64 -T script -C none -d boot.cmd boot.scr      (-A arm on 32 bit)
# and copied to the boot partition (resin-boot) as boot.scr, where U-Boot's distro_bootcmd finds it.
#
# Two text files beside it hold balenaOS's variables:
#   resinOS_uEnv.txt   resin_root_part    partition number of the slot to boot, hexadecimal
#                      upgrade_available  1: that slot is on trial, and the other one is the primary
#                      os_bc_lim          boots that it may use, 1 to 9; absent: 3
#   bootcount.env      bootcount          boots that the trial has used; written here
# One trial boot is counted, and the count saved and read back, before anything of the new system is touched. If it
# cannot be counted, it does not happen. boot/README.md has the truth table; twinhull's src/boot/uboot_text reads and
# writes the same files.
#
# Only `test`, `env import`, `env export`, `fatload` and `fatwrite` decide: setexpr and itest are not in every U-Boot,
# and setexpr counts in hexadecimal while `test` compares in decimal. bootcount.env is always 13 bytes, so fatwrite
# overwrites the one sector that it has.

if test -z "${devtype}"; then setenv devtype mmc; fi
if test -z "${devnum}"; then setenv devnum 0; fi
if test -z "${distro_bootpart}"; then setenv distro_bootpart 1; fi
if test -z "${scriptaddr}"; then setenv scriptaddr ${loadaddr}; fi
# Boards whose slots have other partition numbers set these before (Jetson Orin Nano: f and 10).
if test -z "${slot_a}"; then setenv slot_a 2; fi
if test -z "${slot_b}"; then setenv slot_b 3; fi
# Memory for the text files; not where this script itself is.
if test -z "${envaddr}"; then setenv envaddr ${ramdisk_addr_r}; fi
setenv bootdev "${devtype} ${devnum}:${distro_bootpart}"

# Nothing that a file does not say may be left over from U-Boot's own environment.
setenv resin_root_part
setenv upgrade_available
setenv os_bc_lim
setenv bootcount
if fatload ${bootdev} ${envaddr} resinOS_uEnv.txt; then
  env import -t ${envaddr} ${filesize} resin_root_part upgrade_available os_bc_lim
fi

if test "${resin_root_part}" = "${slot_b}"; then
  setenv part ${slot_b}
  setenv other ${slot_a}
else
  # Slot A also when the file cannot be read: there is nothing better to guess.
  setenv part ${slot_a}
  setenv other ${slot_b}
fi

if test "${upgrade_available}" = "1"; then
  if test -z "${os_bc_lim}"; then setenv os_bc_lim 3; fi
  if fatload ${bootdev} ${envaddr} bootcount.env; then
    env import -t ${envaddr} ${filesize} bootcount
  fi
  setenv next used-up
  if test "${bootcount}" = "${os_bc_lim}"; then setenv next used-up
  elif test "${bootcount}" = "0"; then setenv next 1
  elif test "${bootcount}" = "1"; then setenv next 2
  elif test "${bootcount}" = "2"; then setenv next 3
  elif test "${bootcount}" = "3"; then setenv next 4
  elif test "${bootcount}" = "4"; then setenv next 5
  elif test "${bootcount}" = "5"; then setenv next 6
  elif test "${bootcount}" = "6"; then setenv next 7
  elif test "${bootcount}" = "7"; then setenv next 8
  elif test "${bootcount}" = "8"; then setenv next 9
  fi

  if test "${next}" = "used-up"; then
    echo "twinhull: partition ${part} used up its tries, back to partition ${other}"
    setenv part ${other}
  else
    setenv bootcount ${next}
    env export -t ${envaddr} bootcount
    fatwrite ${bootdev} ${envaddr} bootcount.env 0xd
    # fatwrite's word is not enough: what counts is what the next boot will read.
    setenv bootcount
    if fatload ${bootdev} ${envaddr} bootcount.env; then
      env import -t ${envaddr} ${filesize} bootcount
    fi
    if test "${bootcount}" = "${next}"; then
      echo "twinhull: trial of partition ${part}, boot ${bootcount} of ${os_bc_lim}"
    else
      echo "twinhull: the trial cannot be counted, back to partition ${other}"
      setenv part ${other}
    fi
  fi
fi

# The board lab runs this file for its decision alone.
if test "${twinhull_decide_only}" != "1"; then
  setenv rootdev "${devtype} ${devnum}:${part}"
  part uuid ${rootdev} part_uuid
  echo "twinhull: booting partition ${part} (PARTUUID ${part_uuid})"
  if fatload ${bootdev} ${envaddr} extra_uEnv.txt; then
    env import -t ${envaddr} ${filesize} extra_os_cmdline custom_fdt_file
  fi
  # panic: a kernel that cannot go on restarts the machine, and the boot counter counts it.
  setenv bootargs "root=PARTUUID=${part_uuid} ro panic=5 ${console_args} ${extra_os_cmdline}"
  setenv kernel
  if test -e ${rootdev} /boot/extlinux/extlinux.conf; then
    sysboot ${rootdev} any ${scriptaddr} /boot/extlinux/extlinux.conf
  elif load ${rootdev} ${ramdisk_addr_r} /boot/Image.gz; then
    if unzip ${ramdisk_addr_r} ${kernel_addr_r}; then setenv kernel ready; fi
  elif load ${rootdev} ${kernel_addr_r} /boot/Image; then
    setenv kernel ready
  fi
  if test "${kernel}" = "ready"; then
    if test -n "${custom_fdt_file}"; then setenv fdtfile ${custom_fdt_file}; fi
    setenv fdt ${fdtcontroladdr}
    if load ${rootdev} ${fdt_addr_r} /boot/${fdtfile}; then setenv fdt ${fdt_addr_r}; fi
    load ${rootdev} ${ramdisk_addr_r} /boot/initramfs
    booti ${kernel_addr_r} ${ramdisk_addr_r}:${filesize} ${fdt}
  fi
  echo "twinhull: partition ${part} cannot be booted; restarting in 5 s"
  sleep 5
  reset
fi
