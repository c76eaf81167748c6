"""Images with boxes: Pascal VOC and COCO, read and written."""

from srattn.data.boxes.coco import read_coco as read_coco
from srattn.data.boxes.coco import read_coco_folder as read_coco_folder
from srattn.data.boxes.coco import write_coco as write_coco
from srattn.data.boxes.coco import write_coco_results as write_coco_results
from srattn.data.boxes.index import BoxIndex as BoxIndex
from srattn.data.boxes.index import BoxItem as BoxItem
from srattn.data.boxes.index import OnBadBox as OnBadBox
from srattn.data.boxes.voc import read_voc as read_voc
from srattn.data.boxes.voc import write_voc as write_voc
