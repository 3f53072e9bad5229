/*
 * Lays the map of a run folder over the open slide, and imports its regions and fields. For QuPath 0.5 or newer:
 * Automate > Script editor, open this file, Run; it asks for the run folder, OUT/<slide name>.
 *
 * The map is map.ome.tiff (infer-slide or export-map with --exports ometiff). "Show pixel classification" (the key C)
 * switches it on and off. Run again, it replaces the map, and the regions and fields that it imported before: they are
 * known by their ids. What you drew yourself stays.
 */
import groovy.json.JsonSlurper
import java.awt.image.BufferedImage
import javafx.application.Platform
import qupath.fx.dialogs.FileChoosers
import qupath.lib.color.ColorMaps
import qupath.lib.gui.viewer.overlays.BufferedImageOverlay
import qupath.lib.images.servers.ImageServers
import qupath.lib.io.PathIO
import qupath.lib.regions.ImageRegion
import qupath.lib.regions.RegionRequest

// What you may want to change.
String runFolder = null          // for instance "/data/maps/biopsy"; null asks
double leastProbability = 0.1    // lower ones are not coloured
double opacity = 0.5
String colours = "Viridis"       // one of QuPath's colour maps
int mostPixels = 4000            // along the longer side of what is drawn

def viewer = getCurrentViewer()
def imageData = getCurrentImageData()
if (imageData == null)
    throw new RuntimeException("no slide is open: open the one that was mapped, then run this again")
def folder = runFolder == null ? FileChoosers.promptForDirectory("Run folder of the map", null) : new File(runFolder)
if (folder == null)
    return
def mapFile = new File(folder, "map.ome.tiff")
def regionsFile = new File(folder, "regions.geojson")
def summaryFile = new File(folder, "summary.json")
for (file in [mapFile, regionsFile, summaryFile])
    if (!file.exists())
        throw new RuntimeException("${file}: not there; expected a run folder, with map.ome.tiff by --exports ometiff")

// The map covers the whole slide; QuPath cuts some slides to their bounds, and counts from there.
def size0 = new JsonSlurper().parse(summaryFile).size0
def origin0 = new JsonSlurper().parse(regionsFile).origin0
def server = imageData.getServer()
boolean isCut = origin0.any { it != 0 }
if (!isCut && (server.getWidth() != size0[0] || server.getHeight() != size0[1]))
    throw new RuntimeException(
        "the open slide has ${server.getWidth()} x ${server.getHeight()} px, the map is of one of ${size0[0]} x ${size0[1]} px"
    )

def map = ImageServers.buildServer(mapFile.getAbsolutePath())
double downsample = Math.max(1.0d, Math.max(map.getWidth(), map.getHeight()) / (double) mostPixels)
def raster = map.readRegion(RegionRequest.createInstance(map, downsample)).getRaster()
map.close()
def colourMap = ColorMaps.getColorMaps().get(colours) ?: ColorMaps.getDefaultColorMap()
int alpha = (int) Math.round(255 * opacity)
def picture = new BufferedImage(raster.getWidth(), raster.getHeight(), BufferedImage.TYPE_INT_ARGB)
float[] row = new float[raster.getWidth()]
for (int y = 0; y < raster.getHeight(); y++) {
    raster.getSamples(0, y, row.length, 1, 0, row)
    for (int x = 0; x < row.length; x++)
        if (row[x] >= leastProbability) // never where not scored: that is -1
            picture.setRGB(x, y, (colourMap.getColor(row[x], 0, 1) & 0xffffff) | (alpha << 24))
}

def place = ImageRegion.createInstance(
    -Math.round(origin0[0] as double) as int, -Math.round(origin0[1] as double) as int, size0[0] as int, size0[1] as int, 0, 0
)
Platform.runLater {
    viewer.setCustomPixelLayerOverlay(new BufferedImageOverlay(viewer.getOverlayOptions(), place, picture))
    viewer.repaint()
}

def objects = PathIO.readObjects(regionsFile)
def ids = objects.collect { it.getID() } as Set
def hierarchy = imageData.getHierarchy()
def before = hierarchy.getAllObjects(false).findAll { ids.contains(it.getID()) }
hierarchy.removeObjects(before, true)
hierarchy.addObjects(objects)
println "map of ${folder.getName()} laid over the slide; ${objects.size()} regions and fields, of which ${before.size()} were there before"
