SUMMARY = "The signed update file of twinhull-example-image"
DESCRIPTION = "An example to copy: an image, a version, and the keys from local.conf."
HOMEPAGE = "https://github.com/twinhull/twinhull"
BUGTRACKER = "https://github.com/twinhull/twinhull/issues"
SECTION = "base"
LICENSE = "Apache-2.0"
CVE_PRODUCT = ""

SRC_URI = ""

TWINHULL_BUNDLE_IMAGE = "twinhull-example-image"

inherit twinhull-bundle
